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
// one fault, at its first time; with batches, those that concern these.
const full = process.env.CHAOS === "full";
const faults: Fault[] = ["kill", "freeze", "cut", "restart"];
const atOnce = 12;

/** Waits that an invocation of the scenario comes to whatever the machine does: a run without them would prove nothing. */
const known = [
  "connecting",
  "a pull",
  "waiting for handlers, or for deliveries",
  "reading the attempts at a message",
  "waiting for a turn to run alone",
  "writing the attempts at a message",
  "the schema of consumer worker…",
  "the handler of consumer worker…",
  "waiting to start a handler once more in place",
  "publishing what the handler wants published",
  "publishing to results…",
  "publishing to dead…",
  "publishing to sortie…", // a parked copy
  "acknowledging what a parked message is a copy of",
  "confirming a settlement",
  "removing the attempts at a message",
  "waiting for what is under way",
  "waiting for all to be settled",
];

/** Those at which a batch stands otherwise than a message. */
const ofBatches = [
  "the handler of consumer worker…",
  "waiting to start a part of a batch",
  "waiting to start a handler once more in place",
  "writing the attempts at a message",
  "publishing what the handler wants published",
];

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
    let prepared = await prepare(observed, `${++runs}`, folder, { together, suspect: true });
    for (let tries = 1; !(await strike(prepared, place, fault)); tries++) {
      if (tries === 3) return "the invocation did not come there";
      prepared = await prepare(observed, `${++runs}`, folder, { together, suspect: true });
    }
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
    const recorded = await recordPlaces(await prepare(shared, `record_${what}`, folder, { together, suspect: true }));
    const seen = new Set<string>();
    const places = recorded.flatMap(({ place, times }) => {
      const name = `${place.phase} ${place.point}`;
      const isNew = !seen.has(name);
      seen.add(name);
      if (!full) return isNew && (together === 1 || ofBatches.includes(place.point)) ? [place] : [];
      return times > 1 ? [place, { ...place, nth: Math.floor(times / 2) }] : [place];
    });
    expect([...new Set(recorded.map(({ place }) => place.point))]).toEqual(expect.arrayContaining(known));
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
