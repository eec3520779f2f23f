// How are elements made and numbers written? All text goes in as text nodes: names in the IR are not trusted.

const SVG = "http://www.w3.org/2000/svg";

const present = (children) => children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false && child !== "");
const put = (element, ...children) => element.replaceChildren(...present(children));

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const $ = (selector) => document.querySelector(selector);

function scaled(number, base, units) {
  let unit = 0;
  while (Math.abs(number) >= base && unit < units.length - 1) {
    number /= base;
    unit += 1;
  }
  const digits = unit === 0 || Math.abs(number) >= 100 ? Math.round(number).toString() : number.toPrecision(3);
  return units[unit] ? `${digits} ${units[unit]}` : digits;
}

const bytesText = (count) => scaled(count, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const countText = (count) => scaled(count, 1000, ["", "k", "M", "G", "T", "P"]);
const wholeText = (count) => count.toLocaleString("en-GB");
const plural = (count, noun) => `${wholeText(count)} ${noun}${count === 1 ? "" : "s"}`;

function secondsText(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds >= 100) return `${seconds.toFixed(0)} s`;
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return seconds >= 0.001 ? `${(seconds * 1e3).toFixed(seconds >= 0.1 ? 0 : 1)} ms` : `${(seconds * 1e6).toFixed(0)} µs`;
}

function numberText(value) {
  if (value === 0 || Number.isInteger(value)) return wholeText(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? Number(value.toPrecision(4)).toString() : value.toExponential(2);
}

const percentText = (share) => `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** "weight_error" as a reader would write it: "Weight error". */
const words = (name) => (name[0] ?? "").toUpperCase() + name.slice(1).replaceAll("_", " ");

function cut(text, characters) {
  return text.length <= characters ? text : `${text.slice(0, Math.max(1, characters - 1))}…`;
}
