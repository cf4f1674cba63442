"""The model on an NVIDIA GPU: engines, captured steps, and what happens where there is no GPU. Nothing here imports CUDA before it is asked to.

A step of the relay's streams is one captured graph, samples in and samples out: copy in, masks, int16 to float, STFT, engine (analysis, LM,
synthesis), state write-back, share of the input, inverse STFT, float to int16, copy out (`stepper`, `ends`, `pcm_slots`). **Token sampling is not in
it**: `kernels.DEPTH_SAMPLE` and `kernels.RVQ_NEAREST` are for the token heads (`heads_engine`), which restoration does without; they are compiled
and tested, and nothing launches them. A `Stream` on its own keeps its STFT on the host (`slots`); its step on the device is the same engine in the same graph.
"""
