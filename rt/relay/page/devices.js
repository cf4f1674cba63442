// The microphone, or one sentence that says why not and what to do.
export class MicrophoneError extends Error {}

const WHY = {
  NotAllowedError: "The browser did not give the microphone to this page. Allow it (the sign beside the address), then press Start again.",
  NotFoundError: "No microphone was found. Plug one in, then press Start again.",
  OverconstrainedError: "The chosen microphone is not there any more. Choose another one below, then press Start again.",
  NotReadableError: "The microphone is in use by another program, or is switched off. Free it, then press Start again.",
};

export async function microphone($) {
  if (!window.isSecureContext || !navigator.mediaDevices) {
    throw new MicrophoneError("Browsers give the microphone only to pages that come over https, or from this machine itself. Open this page that way.");
  }
  const chosen = $("microphone").value;
  const audio = { deviceId: chosen ? { exact: chosen } : undefined, channelCount: { ideal: 1 } };
  for (const name of ["echoCancellation", "noiseSuppression", "autoGainControl"]) audio[name] = $(name).checked;
  try {
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (e) {
    throw new MicrophoneError(WHY[e.name] ?? `The microphone could not be opened: ${e.message}`);
  }
}

// Fills the choices. Names are known only once the microphone has been allowed.
export async function listDevices($) {
  if (!navigator.mediaDevices) return;
  const devices = await navigator.mediaDevices.enumerateDevices();
  fill($("microphone"), devices.filter((d) => d.kind === "audioinput"), "microphone");
  const speakers = devices.filter((d) => d.kind === "audiooutput");
  $("speaker-row").hidden = !("setSinkId" in AudioContext.prototype) || !speakers.length;
  fill($("speaker"), speakers, "loudspeaker");
}

function fill(select, devices, word) {
  const chosen = select.value, named = devices.filter((d) => d.deviceId && d.deviceId !== "default");
  select.replaceChildren(new Option("the browser’s choice", ""), ...named.map((d, i) => new Option(d.label || `${word} ${i + 1}`, d.deviceId)));
  select.value = named.some((d) => d.deviceId === chosen) ? chosen : "";
}
