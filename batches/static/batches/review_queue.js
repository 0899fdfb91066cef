"use strict";

document.addEventListener("DOMContentLoaded", () => {
    const all = document.getElementById("select-all");
    if (all === null) {
        return;
    }
    const tiles = document.querySelectorAll(".review-tile input[type=checkbox]");
    all.closest("label").hidden = false;
    all.addEventListener("change", () => {
        for (const tile of tiles) {
            tile.checked = all.checked;
        }
    });
});
