"""Judges what stands on a page by the accessibility rules of axe-core, and by contrasts that axe does not look at.

Knows elements by their selectors; nothing of what they are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# Rules about whole pages: here a part of the host's page is judged.
OF_PAGES = ["region", "page-has-heading-one", "heading-order", "landmark-one-main", "bypass"]

HELPERS = """() => {
    const pen = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
    const rgba = colour => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
    // What lies behind an element: the surfaces of its ancestors, from the nearest opaque one up.
    const surface = element => {
        const layers = [];
        for (let at = element; at; at = at.parentElement) {
            const colour = rgba(getComputedStyle(at).backgroundColor);
            if (colour[3] > 0) layers.push(colour);
            if (colour[3] === 1) break;
        }
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    };
    const light = ([r, g, b]) => {
        const [x, y, z] = [r, g, b].map(value => value / 255).map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * x + 0.7152 * y + 0.0722 * z;
    };
    const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
    const contrast = (element, property) => {
        const below = surface(element.parentElement);
        return ratio(over(rgba(getComputedStyle(element)[property]), below), below);
    };
    window.pistachioAccess = {contrast, isSeen: element => element.checkVisibility({visibilityProperty: true}) && element.getClientRects().length > 0};
}"""


def prepare(page: Any, repository: Path) -> None:
    script = repository / ".host" / "node" / "node_modules" / "axe-core" / "axe.min.js"
    assert script.is_file(), "axe-core is not installed: run `python dev.py test e2e`, which installs what tests/package.json names."
    page.evaluate(script.read_text(encoding="utf-8"))
    page.evaluate(HELPERS)


def problems(page: Any, selector: str) -> list[str]:
    """What axe finds wrong within the elements of a selector: rule, element, and what is wrong."""
    found = page.evaluate(
        """async ([selector, tags, pages]) => {
            const rules = Object.fromEntries(pages.map(rule => [rule, {enabled: false}]));
            const result = await axe.run({include: [selector]}, {runOnly: {type: 'tag', values: tags}, rules});
            if (result.passes.length < 5) throw new Error('axe judged nothing of ' + selector);
            return result.violations.flatMap(({id, nodes}) => nodes.map(node => `${id}: ${node.html.slice(0, 160)} ${node.failureSummary}`));
        }""",
        [selector, RULES, OF_PAGES],
    )
    return found


def contrast(page: Any, selector: str, css_property: str) -> float:
    """The least contrast of a property's colour with what lies behind, over all elements of a selector."""
    return page.evaluate(
        """([selector, property]) => {
            const found = [...document.querySelectorAll(selector)].filter(pistachioAccess.isSeen);
            if (!found.length) throw new Error('there is no ' + selector);
            return Math.min(...found.map(element => pistachioAccess.contrast(element, property)));
        }""",
        [selector, css_property],
    )


def focus_problems(page: Any, selector: str) -> list[str]:
    """Controls that show too little when they have the focus: no outline, or one of too little contrast."""
    return page.evaluate(
        """selector => {
            const told = [];
            const controls = 'button, input, select, textarea, a[href], [tabindex="0"]';
            for (const root of document.querySelectorAll(selector)) for (const one of root.querySelectorAll(controls)) {
                if (!pistachioAccess.isSeen(one) || one.disabled) continue;
                one.focus({preventScroll: true, focusVisible: true});
                if (document.activeElement !== one) { told.push('takes no focus: ' + one.outerHTML.slice(0, 120)); continue; }
                const {outlineStyle, outlineWidth} = getComputedStyle(one);
                const isInner = one.matches('[role="grid"]'); // shows it on its current cell
                if (!isInner && (outlineStyle === 'none' || parseFloat(outlineWidth) < 2 || pistachioAccess.contrast(one, 'outlineColor') < 3))
                    told.push(`shows no focus (${outlineStyle} ${outlineWidth}): ` + one.outerHTML.slice(0, 120));
            }
            return told;
        }""",
        selector,
    )


def moving(page: Any, selector: str) -> list[str]:
    """Elements that are animated or change gradually."""
    return page.evaluate(
        """selector => [...document.querySelectorAll(selector)].flatMap(root => [root, ...root.querySelectorAll('*')])
            .filter(one => { const style = getComputedStyle(one); return style.animationName !== 'none' || style.transitionDuration.split(',').some(time => parseFloat(time) > 0); })
            .map(one => one.outerHTML.slice(0, 120))""",
        selector,
    )
