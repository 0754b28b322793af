// Replaces the parts of a page that change while a job runs. Without scripts the page is whole; a reload shows the same.
"use strict";
for (const part of document.querySelectorAll("[data-live]")) {
  const wait = Number(part.dataset.every || 2000);
  const look = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(part.dataset.live, { credentials: "same-origin", redirect: "manual" });
        if (answer.type === "opaqueredirect") { location.reload(); return; }
        if (answer.ok) {
          const text = await answer.text();
          if (part.dataset.seen !== text) {
            const open = [...part.querySelectorAll("details[open]")].map((d) => d.id);
            const at = document.activeElement && part.contains(document.activeElement) ? document.activeElement.id : "";
            part.innerHTML = text;
            part.dataset.seen = text;
            for (const id of open) { const d = document.getElementById(id); if (d) d.open = true; }
            if (at && document.getElementById(at)) document.getElementById(at).focus();
          }
          part.classList.remove("stale");
          if (part.querySelector("[data-ended]")) return;
        }
      } catch { part.classList.add("stale"); }
    }
    setTimeout(look, wait);
  };
  setTimeout(look, wait);
}
for (const form of document.querySelectorAll("form[data-sure]")) {
  form.addEventListener("submit", (event) => { if (!confirm(form.dataset.sure)) event.preventDefault(); });
}
