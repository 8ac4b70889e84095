// To the clipboard, or where the browser does not let the page, into a field to copy from.

const at = (id) => document.getElementById(id);

/** say: tells that it is done. */
export async function copy(text, say) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    at("copied").value = text;
    at("to-copy").hidden = false;
    at("copied").select();
  }
}
