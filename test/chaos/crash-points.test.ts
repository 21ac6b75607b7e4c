import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
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
  type Prepared,
  prepare,
  recordPlaces,
  remove,
  strike,
  untilQuiet,
} from "./harness.ts";
import type { ScenarioOptions } from "./scenario.ts";

// npm run chaos: all faults at every place, at its first time and at one in the middle. Within npm test: every wait with
// one fault, before it or after it, at its first time; with batches, and with what invocations agree on, those that concern
// these.
const full = process.env.CHAOS === "full";
const faults: Fault[] = ["kill", "freeze", "cut", "restart"];
const atOnce = 10;

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

/** Those at which a batch stands otherwise than a message. */
const ofBatches = [
  "the handler of consumer worker…",
  "waiting to start a part of a batch",
  "waiting to start a handler once more in place",
  "writing the attempts at a message",
  "publishing what the handler wants published",
];

/** Those that are there where invocations have to agree. */
const ofAgreeing = /rate limit|circuit breaker|the keys that were handled|pausing a consumer/;

/** Points that no invocation of the scenarios comes to, and why. */
const elsewhere = new Map([
  ["waiting for the connection's end", "nobody goes on: fan-out.test.ts has that"],
  ["waiting for the server to see that", "nor here"],
  ["asking for more invocations", "nor here"],
  ["waiting for the last to be settled", "what is left is asked for those that go on"],
  ["removing a message", "the server gives up on none: its max_deliver is unlimited"],
  ["waiting for the event loop to come round", "only where handlers keep the processor to themselves"],
  ["waiting to pull again", "only while the server cannot be pulled from"],
  ["waiting for a leader", "one server leads always"],
  ["looking the consumers up", "only where a schedule comes again when the one before is handled"],
  ["looking for a stream", "only where nobody takes what is published"],
  ["hearing what became of the log-in", "only after something has failed"],
  ["looking why", "only where a server lets nobody in"],
  ["waiting to connect again", "a hub does"],
  ["logging in", "so does it"],
  ["connecting to NATS", "and that"],
  ["probing the connection", "and that"],
  ["ending a session", "who uses it does"],
]);

/** Those of which the source has the name apart from the wait. */
const namedApart = [
  "the schema of consumer worker…",
  "the handler of consumer worker…",
  "reading the attempts at a message",
  "writing the attempts at a message",
  "removing the attempts at a message",
  "reading what is left of a rate limit",
  "writing what is left of a rate limit",
  "reading the state of a circuit breaker",
  "writing the state of a circuit breaker",
  "reading the keys that were handled",
  "writing the keys that were handled",
  "removing the keys that were handled",
];

/** The names of the waits in the source, as patterns of what a victim calls them: what is in quotes differs. */
function knownPoints(): RegExp[] {
  const call = /\b(?:within|point|pause)\(\s*(?:[^;"`]*?,\s*)?(?:"([^"]+)"|`([^`]+)`)/g;
  const names = ["consume", "nats", "publish", "dead-letter"].flatMap((folder) =>
    readdirSync(`src/${folder}`).flatMap((file) => {
      const source = readFileSync(`src/${folder}/${file}`, "utf8").replaceAll(/^\s*(?:\*|\/\/|\/\*).*$/gm, ""); // less its comments
      return [...source.matchAll(call)].map(
        ([, plain, template = ""]) => plain ?? template.replaceAll(/"[^"]*"/g, "*"),
      );
    }),
  );
  const stale = [...elsewhere.keys()].filter((name) => !names.includes(name));
  expect(stale, "points that are none any more").toEqual([]);
  const here = [...names, ...namedApart].filter((name) => !elsewhere.has(name));
  return [...new Set(here)].map((name) => new RegExp(`^${name.replaceAll("*", "[a-z]*…")}$`));
}

const waiting: (() => void)[] = [];
let free = atOnce;

/** As many strikes at the same time as the machine can take, of all tests together. */
async function inTurn<T>(act: () => Promise<T>): Promise<T> {
  if (free > 0) free -= 1;
  else await new Promise<void>((resolve) => waiting.push(resolve));
  try {
    return await act();
  } finally {
    const next = waiting.shift();
    if (next) next();
    else free += 1;
  }
}

/** Strikes one invocation, lets others carry on until all is quiet, and looks at what the server holds. */
async function survives(place: Place, fault: Fault, options: ScenarioOptions): Promise<string | undefined> {
  const observed = fault === "restart" ? await observe(await startNatsServer()) : shared;
  const all: Prepared[] = [];
  const start = async () => {
    const prepared = await prepare(observed, `${++runs}`, folder, { ...options, suspect: true });
    all.push(prepared);
    return prepared;
  };
  try {
    let prepared = await start();
    for (let tries = 1; !(await strike(prepared, place, fault)); tries++) {
      if (tries === 3) return "the invocation did not come there";
      prepared = await start();
    }
    await untilQuiet(prepared);
    await expectInvariants(prepared);
    return undefined;
  } catch (error) {
    return String(error instanceof Error ? error.message : error);
  } finally {
    if (observed === shared) for (const one of all) await remove(one);
    else {
      await observed.tcp.close();
      await observed.server.stop();
    }
  }
}

describe("an invocation that is struck at any point", { retry: 0 }, () => {
  it.concurrent.each([
    ["messages", {}, () => true],
    ["batches", { together: 4 }, (point: string) => ofBatches.includes(point)],
    ["what they agree on", { agreeing: true }, (point: string) => ofAgreeing.test(point)],
  ])(
    "keeps every invariant, as the server bears out: with %s",
    { timeout: 3_600_000 },
    async (what, options, concerns) => {
      const run = `record_${what.replaceAll(" ", "_")}`;
      const recorded = await recordPlaces(await prepare(shared, run, folder, { ...options, suspect: true }));
      const reached = new Set(recorded.map(({ place }) => place.point));
      const { together, agreeing } = { together: 1, agreeing: false, ...options };
      const never = knownPoints().filter(
        (known) =>
          (together > 1 || !known.test("waiting to start a part of a batch")) &&
          ofAgreeing.test(known.source) === agreeing &&
          ![...reached].some((point) => known.test(point)),
      );
      expect(never, `points that are never struck, of those that are: ${[...reached].join(", ")}`).toEqual([]);
      const seen = Map.groupBy(recorded, ({ place }) => (full ? `${place.phase} ${place.point}` : place.point));
      const places = full
        ? recorded.flatMap(({ place, times }) =>
            times > 1 ? [place, { ...place, nth: Math.floor(times / 2) }] : [place],
          )
        : [...seen.values()]
            .map((all, n) => all.find(({ place }) => place.phase === (n % 2 === 0 ? "before" : "after")) ?? all[0])
            .flatMap((found) => (found && concerns(found.place.point) ? [found.place] : []))
            .filter((_, n) => n % 2 === 0 || (together === 1 && !agreeing)); // the others are struck by the full form
      const cases = places.flatMap((place, index) =>
        (full ? faults : [faults[index % faults.length] as Fault]).map((fault) => ({ place, fault })),
      );
      const broken: string[] = [];
      const strikeAt = async ({ place, fault }: (typeof cases)[number]) => {
        const wrong = await inTurn(() => survives(place, fault, options));
        const { stage, phase, point, nth } = place;
        if (wrong) broken.push(`${fault} ${phase} ${point} (invocation ${stage + 1}, time ${nth + 1}): ${wrong}`);
      };
      await Promise.all(cases.map(strikeAt));
      console.log(`${cases.length} strikes at ${seen.size} points, with ${what}`);
      expect(broken).toEqual([]);
    },
  );
});
