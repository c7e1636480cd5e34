"use strict";
(() => {
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // theme: what the system says until the button is used, which is remembered where the browser allows it
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("actbench-theme"); } catch { return null; } };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  if (["light", "dark"].includes(stored())) root.dataset.theme = stored();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("actbench-theme", root.dataset.theme); } catch { /* not from a file in some browsers */ }
    label();
  });
  system.addEventListener("change", label);
  label();

  // tables: sort by a head, filter by text, choose columns
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    const number = text === "inf" ? Infinity : Number(text);
    return text === "" || Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) => {
    const numbers = (typeof a === "number") - (typeof b === "number");
    if (numbers) return -numbers;
    return typeof a === "number" ? a - b || 0 : a.localeCompare(b, undefined, { numeric: true });
  };
  const sort = (table, column) => {
    const heads = [...table.tHead.rows[0].cells];
    const down = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    // what is missing stays last in both directions
    rows.sort(([a], [b]) => (a === Infinity) - (b === Infinity) || (down ? -compare(a, b) : compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  const show = (table, column, on) => {
    for (const row of table.rows) row.cells[column].classList.toggle("off", !on);
  };
  document.querySelectorAll(".table").forEach((box, number) => {
    const table = box.querySelector("table");
    const name = table.caption.textContent.trim().split(/[.:(]/)[0];
    const heads = [...table.tHead.rows[0].cells];
    const count = make("span", { role: "status" });
    const search = make("input", { type: "search", id: `filter-${number}` });
    const rows = [...table.tBodies[0].rows];
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        shown += !row.hidden;
      }
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
    });
    const choices = make("fieldset", {}, make("legend", { textContent: `Columns of ${name}` }));
    heads.forEach((head, column) => {
      const title = head.textContent.trim();
      const sorter = make("button", { type: "button", title: head.title, textContent: title });
      sorter.addEventListener("click", () => sort(table, column));
      head.replaceChildren(sorter);
      const box = make("input", { type: "checkbox", checked: !("off" in head.dataset) });
      box.addEventListener("change", () => show(table, column, box.checked));
      if (!box.checked) show(table, column, false);
      choices.append(make("label", {}, box, title));
    });
    const tools = make("div", { className: "tools" });
    if (rows.length > 3) tools.append(make("label", { htmlFor: search.id }, "Filter"), search, count);
    if (heads.length > 4) {
      const chooser = make("details", {}, make("summary", { textContent: "Columns" }), choices);
      chooser.addEventListener("keydown", (event) => {
        if (event.key === "Escape") { chooser.open = false; chooser.firstChild.focus(); }
      });
      document.addEventListener("click", (event) => { if (!chooser.contains(event.target)) chooser.open = false; });
      tools.append(chooser);
    }
    if (tools.childNodes.length) box.prepend(tools);
  });

  // entries: search by name, description and verdict
  document.querySelectorAll("section[data-search]").forEach((section, number) => {
    const entries = [...section.querySelectorAll(":scope > .entry")];
    const search = make("input", { type: "search", id: `search-${number}` });
    const count = make("span", { role: "status" });
    search.addEventListener("input", () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const entry of entries) {
        entry.hidden = !words.every((word) => entry.dataset.words.toLowerCase().includes(word));
        shown += !entry.hidden;
      }
      count.textContent = words.length ? `${shown} of ${entries.length} entries` : "";
    });
    const all = make("button", { type: "button", textContent: "Open all" });
    all.addEventListener("click", () => {
      const open = entries.some((entry) => !entry.hidden && !entry.open);
      for (const entry of entries) if (!entry.hidden) entry.open = open;
      all.textContent = open ? "Close all" : "Open all";
    });
    const tools = make("div", { className: "tools" }, make("label", { htmlFor: search.id }, "Search"), search, all, count);
    section.querySelector("h2").after(tools);
  });

  // paper shows what a click would open
  const closed = new Set();
  addEventListener("beforeprint", () => {
    document.querySelectorAll("details.entry:not([open])").forEach((entry) => { closed.add(entry); entry.open = true; });
  });
  addEventListener("afterprint", () => {
    closed.forEach((entry) => { entry.open = false; });
    closed.clear();
  });
})();
