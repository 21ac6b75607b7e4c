import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import {
  expectInvariants,
  type Fault,
  type Observed,
  observe,
  type Place,
  prepare,
  recordPlaces,
  strike,
  untilQuiet,
} from "./harness.ts";

// npm run chaos: all faults at every place, at its first time and at one in the middle. Within npm test: every point with
// one fault, at its first time.
const full = process.env.CHAOS === "full";
const faults: Fault[] = ["kill", "freeze", "cut", "restart"];
const atOnce = 12;

const folder = mkdtempSync(join(tmpdir(), "sortie-chaos-"));
let shared: Observed;
let runs = 0;

beforeAll(async () => {
  shared = await observe(await startNatsServer());
});
afterAll(async () => {
  await shared.tcp.close();
  await shared.server.stop();
  rmSync(folder, { recursive: true });
});

/** Strikes one invocation, lets others carry on until all is quiet, and looks at what the server holds. */
async function survives(place: Place, fault: Fault, together: number): Promise<string | undefined> {
  const observed = fault === "restart" ? await observe(await startNatsServer()) : shared;
  try {
    const prepared = await prepare(observed, `${++runs}`, folder, { together });
    if (!(await strike(prepared, place, fault))) return "the invocation did not come there";
    await untilQuiet(prepared);
    await expectInvariants(prepared);
    return undefined;
  } catch (error) {
    return String(error instanceof Error ? error.message : error);
  } finally {
    if (observed !== shared) {
      await observed.tcp.close();
      await observed.server.stop();
    }
  }
}

describe("an invocation that is struck at any point", () => {
  it.each([
    ["messages", 1],
    ["batches", 4],
  ])("keeps every invariant, as the server bears out: with %s", { timeout: 1_800_000 }, async (what, together) => {
    const recorded = await recordPlaces(await prepare(shared, `record_${what}`, folder, { together }));
    const seen = new Set<string>();
    const places = recorded.flatMap(({ place, times }) => {
      const name = `${place.phase} ${place.point}`;
      const isNew = !seen.has(name);
      seen.add(name);
      if (!full) return isNew ? [place] : [];
      return times > 1 ? [place, { ...place, nth: Math.floor(times / 2) }] : [place];
    });
    const cases = places.flatMap((place, index) =>
      (full ? faults : [faults[index % faults.length] as Fault]).map((fault) => ({ place, fault })),
    );
    const broken: string[] = [];
    const next = cases[Symbol.iterator]();
    const strikeOn = async () => {
      for (const { place, fault } of next) {
        const wrong = await survives(place, fault, together);
        const { stage, phase, point, nth } = place;
        if (wrong) broken.push(`${fault} ${phase} ${point} (invocation ${stage + 1}, time ${nth + 1}): ${wrong}`);
      }
    };
    await Promise.all(Array.from({ length: atOnce }, strikeOn));
    console.log(`${cases.length} strikes at ${seen.size} points, with ${what}`);
    expect(broken).toEqual([]);
  });
});
