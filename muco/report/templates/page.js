"use strict";
// The page is whole without this script: it adds readings under the pointer, a filter, crisp pixels.

const SVG = "http://www.w3.org/2000/svg";

function nearest(readings, distance) {
  return readings.reduce((best, next) => (distance(next) < distance(best) ? next : best));
}

function withPointer(svg) {
  const readings = JSON.parse(svg.dataset.readings);
  const dot = svg.appendChild(document.createElementNS(SVG, "circle"));
  const tip = svg.parentElement.appendChild(document.createElement("div"));
  dot.setAttribute("class", "dot");
  tip.className = "tip";
  const show = ([x, y, step, value]) => {
    dot.setAttribute("cx", `${x}%`);
    dot.setAttribute("cy", `${y}%`);
    tip.textContent = `${value}\nstep ${step.toLocaleString("en")}`;
    tip.style.left = `${x}%`;
    tip.style.top = `${y}%`;
    tip.classList.toggle("flipped", x > 55);
  };
  return { svg, readings, show };
}

// Pointing at one curve reads all of them at the same step.
function linkCharts(charts) {
  for (const { svg, readings } of charts) {
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const place = (100 * (event.clientX - box.left)) / box.width;
      const step = nearest(readings, (reading) => Math.abs(reading[0] - place))[2];
      for (const chart of charts) chart.show(nearest(chart.readings, (r) => Math.abs(r[2] - step)));
      document.body.classList.add("reading");
    });
    svg.addEventListener("pointerleave", () => document.body.classList.remove("reading"));
  }
}

function filterGallery(choice, onlyMisses) {
  const show = () => {
    for (const task of document.querySelectorAll(".task")) {
      task.hidden = choice.value !== "" && choice.value !== task.id;
    }
  };
  choice.addEventListener("change", show);
  choice.closest("label").hidden = false;
  for (const link of document.querySelectorAll(".scores a")) {
    link.addEventListener("click", () => {
      choice.value = "";
      onlyMisses.checked = false;
      show();
    });
  }
}

function sharpenSmallImages() {
  for (const image of document.images) {
    image.classList.toggle("pixels", image.naturalWidth < image.clientWidth);
  }
}

linkCharts([...document.querySelectorAll(".chart")].map(withPointer).filter((c) => c.readings.length));
const choice = document.querySelector(".by-task select");
if (choice) filterGallery(choice, document.querySelector("#only-misses"));
addEventListener("load", sharpenSmallImages);
