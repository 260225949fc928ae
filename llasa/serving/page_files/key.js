// The dialog that asks for an API key.

import { onKeyWanted, storeKey } from "./server.js";

const $ = (id) => document.getElementById(id);

/** `stored()` is called when a person has given one without being asked. */
export function setUpKeyDialog(stored) {
  const dialog = $("key-dialog");
  const about = $("key-about").textContent;
  let asked = null; // one dialog for all requests that wait for a key
  const ask = (refused) => {
    asked ??= new Promise((resolve) => {
      $("key-about").textContent = refused ? "The server does not accept this key." : about;
      $("key").value = "";
      dialog.returnValue = "";
      dialog.showModal();
      dialog.addEventListener("close", () => {
        asked = null;
        resolve(dialog.returnValue === "use" ? $("key").value.trim() || null : null);
        $("key").value = "";
      }, { once: true });
    });
    return asked;
  };
  onKeyWanted(ask);
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close("use");
  });
  $("key-cancel").addEventListener("click", () => dialog.close());
  $("key-open").addEventListener("click", async () => {
    const key = await ask(false);
    if (!key) return;
    storeKey(key);
    await stored();
  });
}
