"use strict";
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];

// A click on a title sorts by its column: numbers first and by size, what is empty last.
for (const table of $$("table.sorts")) {
  $$("thead th", table).forEach((title, column) => $("button", title).addEventListener("click", () => {
    const up = title.getAttribute("aria-sort") !== "ascending";
    $$("thead th", table).forEach(other => other.removeAttribute("aria-sort"));
    title.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = row => row.cells[column].dataset.value;
    const compare = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    };
    const body = table.tBodies[0];
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  }));
}

// A row is shown if it holds the text, and is of what each menu asks for.
for (const form of $$("form.filter")) {
  const rows = $$("tbody tr", $("#" + form.dataset.table));
  const apply = () => {
    const text = form.elements.text.value.toLowerCase();
    const menus = $$("select[data-key]", form).filter(menu => menu.value);
    let shown = 0;
    for (const row of rows) {
      const fits = menu => row.dataset[menu.dataset.key].split(" ").includes(menu.value);
      row.hidden = !(row.textContent.toLowerCase().includes(text) && menus.every(fits));
      shown += !row.hidden;
    }
    $("output", form).value = `${shown} of ${rows.length}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", event => event.preventDefault());
  apply();
}

// One run's predictions can be left out.
for (const box of $$("input[data-run]")) {
  box.addEventListener("change", () => {
    for (const cell of $$(`#predictions [data-of="${box.dataset.run}"]`)) cell.hidden = !box.checked;
  });
}

// A cue where a table goes on to the right.
for (const frame of $$(".frame")) {
  const box = $(".scroll", frame);
  const look = () => frame.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  box.addEventListener("scroll", look);
  new ResizeObserver(look).observe(box);
}

// What a mark shows, where the pointer rests.
for (const mark of $$("svg [aria-label]")) {
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = mark.getAttribute("aria-label");
  mark.append(title);
}

// The map: a row for each slot, a column for each word. Beneath it the words as the chosen slot reads them.
const maps = JSON.parse($("#slot-maps")?.textContent ?? "[]");
if (maps.length) {
  const canvas = $("#map"), which = $("#which"), slot = $("#slot");
  let map, weights;
  const ink = () => `rgb(${getComputedStyle(document.documentElement).getPropertyValue("--mark")})`;
  const draw = () => {
    const pen = canvas.getContext("2d");
    [canvas.width, canvas.height] = [map.words.length, map.slots];
    pen.fillStyle = ink();
    weights.forEach((weight, i) => {
      pen.globalAlpha = weight / 255;
      pen.fillRect(i % map.words.length, Math.floor(i / map.words.length), 1, 1);
    });
    pen.globalAlpha = 0.25;
    pen.fillRect(0, slot.value, map.words.length, 1);
  };
  const mark = () => {
    const start = slot.value * map.words.length;
    $("#slot-number").value = `slot ${+slot.value + 1} of ${map.slots}`;
    $$("#words span").forEach((word, i) => {
      word.style.background = `rgba(var(--mark), ${weights[start + i] / 255 * 0.75})`;
    });
    draw();
  };
  const choose = () => {
    map = maps[which.value];
    weights = Uint8Array.from(atob(map.weights), letter => letter.charCodeAt(0));
    slot.max = map.slots - 1;
    slot.value = Math.min(slot.value, slot.max);
    $("#words").replaceChildren(...map.words.flatMap(word => {
      const span = document.createElement("span");
      span.textContent = word;
      return [span, " "];
    }));
    mark();
  };
  const point = event => {
    const box = canvas.getBoundingClientRect();
    slot.value = Math.floor((event.clientY - box.top) / box.height * map.slots);
    mark();
  };
  which.addEventListener("input", choose);
  slot.addEventListener("input", mark);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("pointermove", event => event.buttons && point(event));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  choose();
}
