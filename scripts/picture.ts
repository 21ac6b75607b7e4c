// Records the tour as docs/tour.svg: `npm run picture`.
import { spawnSync } from "node:child_process";
import { writeFileSync } from "node:fs";

const [width, lineHeight, charWidth] = [118, 19, 8.43];
const colours: Record<string, string> = {
  "1": "font-weight:700",
  "2": "fill-opacity:.6",
  "31": "fill:#ff7b72",
  "32": "fill:#7ee787",
  "33": "fill:#e3b341",
  "35": "fill:#d2a8ff",
  "36": "fill:#79c0ff",
};

const tour = spawnSync(process.execPath, ["scripts/tour.ts", "--exit"], {
  encoding: "utf8",
  env: { ...process.env, FORCE_COLOR: "1" },
});
if (tour.status !== 0) throw new Error(`The tour ended with ${tour.status}:\n${tour.stdout}${tour.stderr}`);
const lines = `$ npm start\n${tour.stdout.trimEnd()}`.split("\n").map(fit);
const height = (lines.length + 2) * lineHeight;
const text = lines
  .map(
    (line, row) =>
      `<text xml:space="preserve" x="16" y="${Math.round((row + 1.6) * lineHeight)}">${spans(line)}</text>`,
  )
  .join("\n");
writeFileSync(
  "docs/tour.svg",
  `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${Math.ceil(width * charWidth + 32)} ${height}" role="img" aria-label="What npm start shows">
<style>text{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#e6edf3}</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
${text}
</svg>
`,
);

/** Cuts a line at the picture's width, its escape sequences not counted. */
function fit(line: string): string {
  let seen = 0;
  const parts = line.split(colourCode()).map((part, index) => {
    if (index % 2 === 1) return `\u001b[${part}m`;
    const kept = part.slice(0, Math.max(0, width - seen));
    seen += part.length;
    return kept.length < part.length && kept.length > 0 ? `${kept.slice(0, -1)}…` : kept;
  });
  return parts.join("");
}

function spans(line: string): string {
  const styles = new Set<string>();
  return line
    .split(colourCode())
    .map((part, index) => {
      if (index % 2 === 0) return part && `<tspan style="${[...styles].join(";")}">${escaped(part)}</tspan>`;
      if (part === "22") for (const code of ["1", "2"]) styles.delete(colours[code] ?? "");
      else if (part === "39") for (const style of styles) style.startsWith("fill:") && styles.delete(style);
      else if (colours[part]) styles.add(colours[part]);
      return "";
    })
    .join("");
}

function colourCode(): RegExp {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: terminal colours are what is looked for
  return /\u001b\[(\d+)m/;
}

function escaped(part: string): string {
  return part.replace(/[&<>"]/g, (char) => `&#${char.charCodeAt(0)};`);
}
