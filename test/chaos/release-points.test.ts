import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { jetstreamManager } from "@nats-io/jetstream";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type Connection, connect, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { prepare } from "../../src/publish/outgoing.ts";
import { release } from "../../src/schedule/release.ts";
import { type Named, scheduled } from "../../src/schedule/schedule.ts";
import { createSchedules } from "../../src/schedule/schedules.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { bundleProgram } from "../support/bundle.ts";
import { ended, type Fault, type Observed, observe, struckBy } from "./harness.ts";
import { type ReleaseOrders, releasingMs, streamOf } from "./release-victim.ts";
import type { Strike } from "./struck.ts";

// npm run chaos: all faults before and after every wait of a function that releases. Within npm test: each wait with one.
const full = process.env.CHAOS === "full";
const faults: Fault[] = ["kill", "freeze", "cut", "restart"];
const atOnce = 10;

/** Longer than a claim is respected: another one takes over. */
const frozenMs = 6_000;

const folder = mkdtempSync(join(tmpdir(), "sortie-chaos-"));
let shared: Observed;
let victimFile: string;
let runs = 0;

beforeAll(async () => {
  shared = await observe(await startNatsServer());
  victimFile = await bundleProgram("release-victim.ts", folder);
});
afterAll(async () => {
  await shared.tcp.close();
  await shared.server.stop();
  rmSync(folder, { recursive: true });
});

/** Waits that a releasing function does not come to here, and why. */
const elsewhere = new Map([
  ["waiting for a schedule that is being released", "whoever cancels does"],
  ["waiting for what is released meanwhile", "whoever schedules on the server does"],
  ["asking for the server's time", "the same"],
  ["removing a schedule", "the same"],
  ["listing schedules", "whoever lists them does"],
  ["looking at the schedules", "only where the server releases"],
  ["looking for what a function has to release", "the same"],
  ["waiting for others to go on with a backlog", "only where hundreds are due together"],
  ["looking for the one before", "only in a work queue"],
  ["looking for what was released", "only where the stream has forgotten its message ids"],
]);

function knownPoints(): string[] {
  const named = /"((?:reading|looking|waiting|removing|listing|asking|publishing) [^"]*)"/g;
  const names = readdirSync("src/schedule").flatMap((file) => {
    const source = readFileSync(`src/schedule/${file}`, "utf8").replaceAll(/^\s*(?:\*|\/\/|\/\*).*$/gm, "");
    return [...source.matchAll(named)].map(([, name = ""]) => name);
  });
  const stale = [...elsewhere.keys()].filter((name) => !names.includes(name));
  expect(stale, "points that are none any more").toEqual([]);
  return [...new Set(names)].filter((name) => !elsewhere.has(name));
}

interface Run {
  readonly observed: Observed;
  readonly run: string;
  readonly stream: ReturnType<typeof streamOf>;
  /** What is to be released: which, and when. */
  readonly expected: readonly { readonly n: number; readonly at: number }[];
}

/** Schedules of all kinds: with and without an id, due and not, replaced, cancelled, and one that comes again, after its predecessor. */
async function begin(observed: Observed, aheadMs = 700): Promise<Run> {
  const run = `${++runs}`;
  const stream = streamOf(run);
  const connection = await connect({ url: observed.server.url }, 5_000);
  await apply(connection, { streams: [stream], consumers: [] });
  const from = Date.now() + aheadMs;
  const schedule = async (n: number, options: Named) => {
    const outgoing = await prepare([stream], `tasks.${run}`, { n });
    await scheduled(connection, outgoing, stream, options, Date.now()).store(5_000);
  };
  const at = (ms: number) => ({ at: new Date(from + ms) });
  await Promise.all([
    schedule(0, { ...at(-5_000), id: "past" }),
    ...[1, 2, 3, 4].map((n) => schedule(n, { ...at(n * 200), id: `task ${n}` })),
    ...[5, 6].map((n) => schedule(n, { ...at(n * 200), id: `nameless ${n}`, nameless: true })),
    schedule(70, { ...at(300), id: "replaced" }).then(() => schedule(7, { ...at(900), id: "replaced" })),
    schedule(80, { ...at(600), id: "cancelled" }),
    schedule(9, { every: "1s", overlap: "queue", until: new Date(Date.now() + 2_700), id: "again" }),
  ]);
  const schedules = createSchedules(connection, [stream]);
  expect(await schedules.cancel("cancelled")).toBe("cancelled");
  const { next = [] } = (await schedules.get("again")) ?? {};
  disconnect(connection);
  expect(next).toHaveLength(2);
  const once = [0, 1, 2, 3, 4, 5, 6].map((n) => ({ n, at: from + (n === 0 ? -5_000 : n * 200) }));
  const again = next.map((time) => ({ n: 9, at: time.getTime() }));
  return { observed, run, stream, expected: [...once, { n: 7, at: from + 900 }, ...again] };
}

function startVictim(orders: ReleaseOrders): ChildProcess {
  return spawn(process.execPath, [victimFile, JSON.stringify(orders)], { stdio: ["ignore", "pipe", "pipe", "pipe"] });
}

async function releaseCleanly({ observed, stream }: Run, lingerMs: number): Promise<void> {
  const connection: Connection = await connect({ url: observed.server.url }, 5_000);
  await release(connection, [stream], { deadline: Date.now() + lingerMs + 1_500, lingerMs });
  disconnect(connection);
}

/** Answers whether the victim came there. */
function struck(one: Run, strike: Strike, fault: Fault): Promise<boolean> {
  const { observed, run } = one;
  const start = (url: string) => startVictim({ url, run, strike });
  return struckBy(fault, observed, start, () => releaseCleanly(one, frozenMs)); // another one takes over what it has claimed
}

/** What was released, and whether it was early. */
async function found({ observed, run }: Run) {
  const jsm = await jetstreamManager(observed.tcp, { checkAPI: false });
  const { state } = await jsm.streams.info(`TASKS_${run}`);
  const all = [];
  for (let seq = Math.max(1, state.first_seq); seq <= state.last_seq; seq++) {
    const message = await jsm.streams.getMessage(`TASKS_${run}`, { seq });
    if (!message) continue;
    const at = Number(message.header.get("Sortie-Scheduled-For").split(" ")[0]);
    all.push({ n: message.json<{ n: number }>().n, at, early: message.time.getTime() < at });
  }
  return all;
}

async function survives(strike: Strike, fault: Fault): Promise<string | undefined> {
  const observed = fault === "restart" ? await observe(await startNatsServer()) : shared;
  try {
    let one = await begin(observed);
    for (let tries = 1; !(await struck(one, strike, fault)); tries++) {
      if (tries === 6) return "the function did not come there"; // a busy machine may be late for what is due
      one = await begin(observed, 700 + 300 * tries);
    }
    const { expected, stream } = one;
    const inOrder = (a: { n: number; at: number }, b: { n: number; at: number }) => a.n - b.n || a.at - b.at;
    const wanted = expected.map((each) => ({ ...each, early: false })).toSorted(inOrder);
    for (const giveUpAt = Date.now() + 30_000; (await found(one)).length < wanted.length && Date.now() < giveUpAt; )
      await releaseCleanly(one, 1_000);
    const connection = await connect({ url: observed.server.url }, 5_000);
    const schedules = createSchedules(connection, [stream]);
    const states = async () => {
      const all = await Promise.all(["task 1", "again", "replaced", "cancelled"].map((id) => schedules.get(id)));
      return all.map((status) => status?.state).join();
    };
    // whoever was struck may have released the last one without leaving a word: another one does when it takes over
    const over = ["released", "released", "released", "cancelled"].join();
    for (const giveUpAt = Date.now() + 15_000; (await states()) !== over && Date.now() < giveUpAt; )
      await releaseCleanly(one, 1_000);
    expect(await states()).toBe(over);
    disconnect(connection);
    const all = (await found(one)).toSorted(inOrder);
    const missing = wanted.filter(({ n, at }) => !all.some((each) => each.n === n && each.at === at));
    expect(missing, "what was not released").toEqual([]);
    expect(all).toEqual(wanted);
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

describe("a function that releases, struck at any of its waits,", { retry: 0 }, () => {
  it("releases each schedule once, and none early", { timeout: 3_600_000 }, async () => {
    const { said, errors } = await ended(startVictim({ url: shared.server.url, run: (await begin(shared)).run }));
    expect(said, errors).not.toBe("");
    const places = (JSON.parse(said) as [string, number][]).map(([name, times]) => {
      const [, phase = "", point = ""] = /^(\S+) (.*)$/.exec(name) ?? [];
      return { phase, point, times };
    });
    const reached = new Set(places.map(({ point }) => point));
    const never = knownPoints().filter((point) => !reached.has(point));
    expect(never, `waits that are never struck, of those that are: ${[...reached].join(", ")}`).toEqual([]);
    // claiming, releasing, coming again and leaving a word are publishes all: these are struck at more of their times
    const timesOf = (point: string, times: number) => {
      const parts = point.startsWith("publishing") ? (full ? 12 : 4) : full ? 2 : 1;
      return [...new Set(Array.from({ length: parts }, (_, part) => Math.floor((part * times) / parts)))];
    };
    const strikes = places
      .filter(({ phase, point }) => full || phase === ([...reached].indexOf(point) % 2 ? "after" : "before"))
      .flatMap(({ point, phase, times }) => timesOf(point, times).map((nth): Strike => ({ point, phase, nth })));
    const cases = strikes.flatMap((strike, at) =>
      (full ? faults : [faults[at % faults.length] as Fault]).map((fault) => ({ strike, fault })),
    );
    const broken: string[] = [];
    const left = [...cases];
    const worker = async () => {
      for (let next = left.shift(); next; next = left.shift()) {
        const { strike, fault } = next;
        const wrong = await survives(strike, fault);
        if (wrong) broken.push(`${fault} ${strike.phase} ${strike.point} (time ${strike.nth + 1}): ${wrong}`);
      }
    };
    await Promise.all(Array.from({ length: atOnce }, worker));
    console.log(
      `${cases.length} strikes at ${reached.size} waits of a function that releases (${releasingMs} ms each)`,
    );
    expect(broken).toEqual([]);
  });
});
