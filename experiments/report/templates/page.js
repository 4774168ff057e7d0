"use strict";
// Draws each plot, links the axes of a figure's panels, and shows or hides curves.
const CONFIG = {
  responsive: true,
  displaylogo: false,
  // Only local actions: some of the default buttons upload the figure.
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]],
  plotlyServerURL: "",
};
// Dragging scrolls the page on a touch screen and zooms with a mouse.
const DRAG = window.matchMedia("(pointer: coarse)").matches ? false : "zoom";

function plotsOf(element) {
  return [...element.closest(".figure").querySelectorAll(".plot")];
}

function axisChanges(event, axes) {
  return Object.fromEntries(
    Object.entries(event).filter(([key]) => axes.some((axis) => key.startsWith(axis + "."))),
  );
}

function same(plot, changes) {
  return Object.entries(changes).every(([key, value]) => {
    const [axis, property, index] = key.split(/[.[\]]+/);
    const now = plot.layout[axis][property];
    return (index === undefined || index === "" ? now : now[Number(index)]) === value;
  });
}

function link(plot) {
  const axes = plot.closest(".figure").dataset.link.split(" ").filter(Boolean);
  plot.on("plotly_relayout", (event) => {
    const changes = axisChanges(event, axes);
    if (Object.keys(changes).length === 0) return;
    for (const other of plotsOf(plot)) {
      // Skip a panel that has this range already: otherwise two panels would update each other.
      if (other !== plot && !same(other, changes)) Plotly.relayout(other, { ...changes });
    }
  });
}

function setCurve(button, shown) {
  button.setAttribute("aria-pressed", String(shown));
  for (const plot of plotsOf(button)) {
    const traces = plot.data.flatMap((t, i) => (t.meta === button.dataset.curve ? [i] : []));
    if (traces.length > 0) Plotly.restyle(plot, { visible: shown }, traces);
  }
}

function draw(plot) {
  const { data, layout } = JSON.parse(plot.querySelector("script").textContent);
  Plotly.newPlot(plot, data, { ...layout, dragmode: DRAG }, CONFIG).then(() => link(plot));
}

for (const plot of document.querySelectorAll(".plot")) {
  // A folded section has no width yet.
  const folded = plot.closest("details:not([open])");
  if (folded) folded.addEventListener("toggle", () => draw(plot), { once: true });
  else draw(plot);
}
for (const button of document.querySelectorAll("button[data-curve]")) {
  button.addEventListener("click", () => {
    setCurve(button, button.getAttribute("aria-pressed") !== "true");
  });
}
for (const button of document.querySelectorAll("button[data-show]")) {
  button.addEventListener("click", () => {
    const kinds = button.dataset.show.split(" ");
    for (const entry of button.closest(".figure").querySelectorAll("button[data-curve]")) {
      setCurve(entry, kinds.includes(entry.dataset.kind));
    }
  });
}
