// Charts are drawn in the colours of the page, and downwards where there is no room to the right.
const dark = document.body.dataset.theme === "dark" ||
    (document.body.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
mermaid.initialize({ startOnLoad: false, theme: dark ? "dark" : "neutral" });
addEventListener("load", () => {
    if (innerWidth < 700) {
        for (const chart of document.querySelectorAll("pre.mermaid")) {
            chart.textContent = chart.textContent.replace("flowchart LR", "flowchart TB");
        }
    }
    mermaid.run();
});
