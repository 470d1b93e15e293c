// Runs once when the page is loaded. The keys of ARIA's pattern for tabs, which Gradio leaves out: one tab stop for all
// tabs; arrows, Home and End open the others. A panel is named after its tab.
() => {
  const list = document.querySelector("[role=tablist]");
  const tabs = () => [...list.querySelectorAll("[role=tab]")];
  const mark = () => {
    for (const tab of tabs()) {
      const isOpen = tab.ariaSelected === "true";
      tab.tabIndex = isOpen ? 0 : -1;
      const panel = isOpen && document.getElementById(tab.getAttribute("aria-controls"));
      if (panel) panel.setAttribute("aria-labelledby", tab.id);
    }
  };
  list.addEventListener("keydown", (event) => {
    const all = tabs();
    const at = all.indexOf(document.activeElement);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    const tab = all.at(next % all.length);
    tab.click();
    tab.focus();
  });
  new MutationObserver(mark).observe(list, { subtree: true, attributes: true, attributeFilter: ["aria-selected"] });
  mark();
  // Gradio may measure the tabs before they have their style, and then hides the last in a menu on a narrow screen.
  for (const wait of [0, 300, 1000, 3000, 9000]) setTimeout(() => dispatchEvent(new Event("resize")), wait);
}
