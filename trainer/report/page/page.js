/* Starts the page: shows the first tab, and draws the parts of a tab when it is shown first. */

/** Draw the charts, the classes, the confusions and the gallery of a tab. */
function drawTab(tab, content) {
  const recordsOf = (series) => (content.records || DATA.runs[series.run].records)[series.kind];
  const group = chartGroup();
  for (const box of tab.querySelectorAll("[data-charts]")) {
    drawCharts(box, content.charts.filter((chart) => chart.part === box.dataset.charts), recordsOf, group);
  }
  const find = (part) => tab.querySelector(`[data-${part}]`);
  if (find("classes") && content.levels.length) {
    find("classes").hidden = false;
    drawClasses(find("classes"), content.levels[0]);
  }
  if (find("confusion")) drawConfusion(find("confusion"), content.levels);
  if (find("gallery")) drawGallery(find("gallery"), content.gallery, content.classNames);
}

function showTab(id) {
  for (const tab of document.querySelectorAll(".tab")) tab.hidden = tab.id !== id;
  for (const button of document.querySelectorAll("[data-tab]")) button.setAttribute("aria-current", button.dataset.tab === id);
  const tab = document.getElementById(id);
  if (tab.dataset.drawn) return;
  tab.dataset.drawn = "yes";
  if (id === "comparison") drawTab(tab, DATA.comparison);
  else if (id.startsWith("run-")) drawTab(tab, DATA.runs[Number(id.slice("run-".length))]);
}

for (const button of document.querySelectorAll("[data-tab]")) {
  button.addEventListener("click", () => showTab(button.dataset.tab));
}
document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = getComputedStyle(root).colorScheme === "dark";
  root.dataset.theme = isDark ? "light" : "dark";
});
showTab(document.querySelector(".tab").id);
