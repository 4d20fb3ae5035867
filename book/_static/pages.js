// What a reader's browser adds to a page: names of buttons, coloured verdicts, larger pictures.
document.addEventListener("DOMContentLoaded", () => {
  for (const button of document.querySelectorAll("button.copybtn")) {
    button.setAttribute("aria-label", "Copy this code");
  }
  for (const button of document.querySelectorAll("button[title]:not([aria-label])")) {
    button.setAttribute("aria-label", button.title);
  }
  for (const fold of document.querySelectorAll("summary[aria-label]")) {
    fold.removeAttribute("aria-label"); // "Toggle hidden content" would replace its visible words
  }

  // The grid of the claims is scanned: its signs have colours. The first column holds links.
  for (const cell of document.querySelectorAll("#l-grid td:not(:first-child)")) {
    cell.innerHTML = cell.innerHTML.replace(/[✓✗?]/g, '<b class="verdict" data-sign="$&">$&</b>');
  }

  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.innerHTML = '<button type="button" class="btn btn-sm btn-primary">Close</button><img alt="">';
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  const large = dialog.querySelector("img");

  for (const image of document.querySelectorAll("figure .picture > img")) {
    const show = () => {
      large.src = image.src;
      large.alt = image.alt;
      dialog.setAttribute("aria-label", `Enlarged figure: ${image.alt}`);
      dialog.showModal();
    };
    const links = document.createElement("p");
    links.className = "picture-links";
    links.innerHTML = '<button type="button">Enlarge</button>';
    links.firstChild.addEventListener("click", show);
    image.addEventListener("click", show);
    if (image.src.startsWith("data:image/svg")) {
      const link = document.createElement("a");
      link.href = image.src;
      link.download = `${image.closest("figure").id}.svg`;
      link.textContent = "SVG";
      links.append(" · Download: ", link);
      const pdf = image.closest("figure").nextElementSibling;
      if (pdf?.matches(".picture-pdf")) {
        links.append(" · ", pdf.querySelector("a"));
        pdf.remove();
      }
    }
    image.parentElement.after(links);
  }
});
