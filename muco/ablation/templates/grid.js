"use strict";
// The page is whole without this script: it sorts the table.

for (const table of document.querySelectorAll(".results")) {
  const titles = [...table.tHead.rows[0].cells];
  titles.forEach((title, column) => {
    title.querySelector("button").addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") !== "descending";
      for (const other of titles) other.setAttribute("aria-sort", "none");
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.sort;
      const compare = (a, b) =>
        key(a) === "" || key(b) === "" ? (key(a) === "") - (key(b) === "")
          : (down ? -1 : 1) * (Number(key(a)) - Number(key(b)) || key(a).localeCompare(key(b)));
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
