// Charts are drawn in the colours of the page, downwards where there is no room to the right, and never so small that
// they cannot be read: then they scroll.
const dark = document.body.dataset.theme === "dark" ||
    (document.body.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
const LEAST = 0.6; // of the size that a chart is drawn for

async function draw(chart, number) {
    const text = chart.textContent, room = chart.clientWidth;
    const drawn = async (direction) => {
        const holder = document.createElement("div");
        const { svg } = await mermaid.render(`chart-${number}-${direction}`, text.replace("flowchart LR", `flowchart ${direction}`));
        holder.innerHTML = svg;
        return holder.firstElementChild;
    };
    let picture = await drawn("LR");
    if (LEAST * picture.viewBox.baseVal.width > room && text.includes("flowchart LR")) {
        const down = await drawn("TB");
        if (down.viewBox.baseVal.width < picture.viewBox.baseVal.width) picture = down;
    }
    picture.style.minWidth = `${LEAST * picture.viewBox.baseVal.width}px`;
    chart.replaceChildren(picture);
    chart.scrollLeft = (chart.scrollWidth - chart.clientWidth) / 2;
}

mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral" });
addEventListener("load", async () => {
    for (const [number, chart] of document.querySelectorAll("pre.mermaid").entries()) await draw(chart, number);
});
