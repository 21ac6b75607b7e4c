import { readdirSync, readFileSync } from "node:fs";
import { posix } from "node:path";
import { expect, test } from "vitest";

/** The files and folders of src/, in the order of their arrows: each imports itself and what stands before it. */
const order = [
  ["errors", "duration", "schema", "define", "nats"],
  ["publish", "schedule", "dead-letter", "consume", "provision"],
  ["app", "client", "index", "http", "testing", "cli", "adapters"],
].flat();

/** Whom an exception allows: nothing is provisioned on the hot path, and a developer's tools are not deployed. */
const onlyFor: Record<string, string[]> = { provision: ["testing", "cli"], testing: ["cli"], cli: [] };

function mayImport(from: string, to: string): boolean {
  if (!order.includes(from) || !order.includes(to)) return false; // a new folder takes its place in the order first
  return from === to || (order.indexOf(to) < order.indexOf(from) && (onlyFor[to]?.includes(from) ?? true));
}

test("imports point one way", () => {
  const layerOf = (path: string) => path.replace(/(\/.*|\.ts)$/, "");
  const against: string[] = [];
  for (const file of readdirSync("src", { recursive: true, encoding: "utf8" }).filter((name) => name.endsWith(".ts"))) {
    for (const [, specifier = ""] of readFileSync(`src/${file}`, "utf8").matchAll(
      /\b(?:from|import)[\s(]*"(\..*?)"/g,
    )) {
      const imported = posix.join(posix.dirname(file), specifier);
      if (!mayImport(layerOf(file), layerOf(imported))) against.push(`${file} → ${imported}`);
    }
  }
  expect(against).toEqual([]);
});
