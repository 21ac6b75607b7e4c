import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import manifest from "../package.json" with { type: "json" };

// What users build on. A change here is a change for them: say so in CHANGELOG.md.
describe("the public surface", () => {
  it.each(Object.entries(manifest.exports))("of sortie %s", async (_, entry) => {
    const values = Object.keys(await import(/* @vite-ignore */ `../${entry.default}`)).toSorted();
    const declarations = readFileSync(entry.types, "utf8").replace(/\/\*\*[\s\S]*?\*\/\s*/g, "");
    expect({ values, declarations: declarations.split("\n").filter((line) => line.trim() !== "") }).toMatchSnapshot();
  });

  it("of the command line", () => {
    const help = (...args: string[]) =>
      execFileSync(process.execPath, [manifest.bin.sortie, ...args, "--help"], { encoding: "utf8", env: {} });
    expect([help(), help("apply"), help("schedules"), help("permissions")]).toMatchSnapshot();
  });
});
