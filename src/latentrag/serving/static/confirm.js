// A question before what others will notice.

const at = (id) => document.getElementById(id);

/** Whether the person says yes. */
export function confirmed(text, yes) {
  const dialog = at("confirm");
  at("confirm-text").textContent = text;
  at("confirm-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
