import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { MsgHdrs, NatsConnection } from "@nats-io/nats-core";
import { connect as connectTcp } from "@nats-io/transport-node";
import { expect } from "vitest";
import { invoke } from "../../src/consume/invocation.ts";
import { companionOf } from "../../src/define/own.ts";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import type { NatsServer } from "../../src/testing/nats-server.ts";
import { bundleProgram } from "../support/bundle.ts";
import { startProxy } from "../support/peers.ts";
import { ackWaitMs, fateOf, keyOf, messages, type ScenarioOptions, scenario } from "./scenario.ts";
import type { Orders } from "./victim.ts";

/** What can happen to an invocation at a point. */
export type Fault = "kill" | "freeze" | "cut" | "restart";

/** A point of an invocation: before or after one of its waits. */
export interface Place {
  /** How many invocations there were before. */
  readonly stage: number;
  readonly point: string;
  readonly phase: string;
  readonly nth: number;
}

const budgetMs = 2_000;

/** A server, and a client that is not Sortie's to look at it. */
export interface Observed {
  readonly server: NatsServer;
  tcp: NatsConnection;
}

export async function observe(server: NatsServer): Promise<Observed> {
  // without reconnecting, for the client's transport is global to the process: it would take another one
  return { server, tcp: await connectTcp({ servers: server.tcpUrl.replace("nats://", ""), reconnect: false }) };
}

/** One run of the scenario: its streams on a server, with messages in them, and what handlers were started in a file. */
export async function prepare(
  observed: Observed,
  run: string,
  folder: string,
  {
    numbers = messages,
    suspect = false,
    ...options
  }: ScenarioOptions & {
    numbers?: readonly number[];
    /** Whether a function has died with the first message in hand. */
    suspect?: boolean;
  } = {},
) {
  const { server, tcp } = observed;
  const log = join(folder, run);
  writeFileSync(log, "");
  const made = scenario(run, log, options);
  const { fate = fateOf } = options;
  const { app, worker } = made;
  const connection = await connect({ url: server.url }, 5_000);
  await apply(connection, { streams: app.streams, consumers: [worker] });
  disconnect(connection);
  const js = jetstream(tcp);
  for (let from = 0; from < numbers.length; from += 500) {
    const some = numbers.slice(from, from + 500);
    await Promise.all(some.map((n) => js.publish(`jobs.${run}`, JSON.stringify({ n }))));
  }
  if (suspect) {
    await (await js.consumers.get(made.jobs.name, worker.name)).next({ expires: 5_000 });
    await sleep(ackWaitMs);
  }
  const jsm = () => jetstreamManager(observed.tcp, { checkAPI: false });
  return {
    ...made,
    run,
    log,
    numbers,
    fate,
    together: options.together ?? 1,
    agreeing: options.agreeing ?? false,
    observed,
    server,
    jsm,
    victim: await bundleProgram("victim.ts", folder),
  };
}

export type Prepared = Awaited<ReturnType<typeof prepare>>;

/** Runs one invocation in a process of its own. */
export function startVictim({ victim }: Prepared, orders: Orders, flags: string[] = []): ChildProcess {
  return spawn(process.execPath, [...flags, victim, JSON.stringify(orders)], {
    stdio: ["ignore", "pipe", "pipe", "pipe"],
  });
}

/** Waits for a victim's end; `said` is what it printed. */
export async function ended(victim: ChildProcess): Promise<{ code: number | null; said: string; errors: string }> {
  let [said, errors] = ["", ""];
  victim.stdout?.on("data", (chunk) => (said += chunk));
  victim.stderr?.on("data", (chunk) => (errors += chunk));
  const [code] = await once(victim, "close");
  return { code, said, errors };
}

/** Every place that the invocations of the scenario come to, with how often. */
export async function recordPlaces(prepared: Prepared): Promise<{ place: Place; times: number }[]> {
  const { server, run, log, together, agreeing } = prepared;
  const found: { place: Place; times: number }[] = [];
  const stages = [0, 1, 2, lastStage, lastStage]; // what is parked may have been so late
  for (const [at, stage] of stages.entries()) {
    if (stage === lastStage) await sleep(at === lastStage ? parkedMs : 1_000);
    const invoked = () => ended(startVictim(prepared, { url: server.url, run, log, budgetMs, together, agreeing }));
    let { said, errors } = await invoked();
    for (let tries = 1; !said && tries < 5; tries++) ({ said, errors } = await invoked()); // it could not connect in time
    if (!said) throw new Error(`the victim said nothing: ${errors}`);
    for (const [name, times] of (JSON.parse(said) as { times: [string, number][] }).times) {
      const [, phase = "", point = ""] = /^(\S+) (.*)$/.exec(name) ?? [];
      found.push({ place: { stage, phase, point, nth: 0 }, times });
    }
  }
  return found;
}

/** The invocations of the scenario: first deliveries, second ones, third ones, and what was parked. */
const lastStage = 3;
const parkedMs = 5_200;

/** Strikes the first invocation, from about the place's stage on, that comes to it; answers whether one did. */
export async function strike(prepared: Prepared, place: Place, fault: Fault): Promise<boolean> {
  const before = place.stage === lastStage ? 1 : place.stage - 1; // a retry may come sooner than it was recorded
  for (let stage = 0; stage < before; stage++) await invokeCleanly(prepared);
  if (place.stage === lastStage) await sleep(parkedMs);
  for (let tries = 0; tries < 10; tries++) if (await struck(prepared, place, fault)) return true;
  return false;
}

function struck(prepared: Prepared, place: Place, fault: Fault): Promise<boolean> {
  const { run, log, together, agreeing } = prepared;
  const start = (url: string) => startVictim(prepared, { url, run, log, budgetMs, together, agreeing, strike: place });
  return struckBy(fault, prepared.observed, start, async () => {
    await sleep(ackWaitMs * 1.2);
    await invokeCleanly(prepared); // another one has what was in its hands
  });
}

/** Starts a victim and lets a fault happen to it where it stands still; answers whether it came there. */
export async function struckBy(
  fault: Fault,
  observed: Observed,
  start: (url: string) => ChildProcess,
  whileFrozen: () => Promise<void>,
): Promise<boolean> {
  const { server } = observed;
  await using proxy = await startProxy(server.url);
  const victim = start(proxy.url);
  const end = ended(victim);
  const control = victim.stdio[3] as Duplex;
  control.on("error", () => {}); // it may be killed while it is being told
  const here = await Promise.race([once(control, "data").then(() => true), end.then(() => false)]);
  if (here) {
    if (fault === "kill") victim.kill("SIGKILL");
    if (fault === "cut") for (const socket of proxy.sockets) socket.destroy();
    if (fault === "restart") {
      await server.kill("SIGKILL");
      await server.start();
      observed.tcp = (await observe(server)).tcp;
    }
    if (fault === "freeze") {
      victim.kill("SIGSTOP");
      await whileFrozen();
      victim.kill("SIGCONT");
    }
    control.write("go on\n");
  }
  await end;
  return here;
}

async function invokeCleanly({ app, server }: Prepared) {
  const { streams, bindings } = app;
  const connectTo = () => connect({ url: server.url }, 5_000); // the machine may be busy with other runs
  return invoke({ streams, bindings, connect: connectTo, deadline: Date.now() + budgetMs, host: "clean", log() {} });
}

/** Invokes until nothing is left to deliver and nothing is outstanding. */
export async function untilQuiet(prepared: Prepared, step: () => Promise<unknown> = () => invokeCleanly(prepared)) {
  const giveUpAt = Date.now() + 60_000;
  for (let quiet = 0; quiet < 2; ) {
    await step();
    quiet = (await outstanding(prepared)) === 0 ? quiet + 1 : 0;
    if (Date.now() > giveUpAt) throw new Error(`${await outstanding(prepared)} messages are still outstanding`);
    await sleep(200); // many runs are quiet together, until what is parked is due
  }
}

/** How many messages are left: waiting, being handled, or parked. */
export async function outstanding({ jsm, worker, jobs }: Prepared): Promise<number> {
  const consumers = [
    [jobs.name, worker.name],
    ["SORTIE_PARKED", companionOf(worker)],
  ] as const;
  const { consumers: looked } = await jsm();
  const infos = await Promise.all(consumers.map(([stream, name]) => looked.info(stream, name)));
  return infos.reduce((sum, { num_pending, num_ack_pending }) => sum + num_pending + num_ack_pending, 0);
}

/** Takes a run off its server, where there are thousands. */
export async function remove({ jsm, worker, jobs, results, dead }: Prepared): Promise<void> {
  const { streams, consumers } = await jsm();
  for (const { name } of [jobs, results, dead]) await streams.delete(name);
  await consumers.delete("SORTIE_PARKED", companionOf(worker));
}

/** How often a handler was started for each message, and with which attempts. */
export function startsIn({ log, numbers }: Prepared): Map<number, number[]> {
  const starts = new Map<number, number[]>(numbers.map((n) => [n, []]));
  for (const line of readFileSync(log, "utf8").trim().split("\n").filter(Boolean)) {
    const [n = 0, attempt = 0] = line.split(" ").map(Number);
    starts.get(n)?.push(attempt);
  }
  return starts;
}

/** Of how many attempts at a dead letter nobody heard how they ended. */
export function unheardIn(letter: MsgHdrs): number {
  return letter.values("Sortie-Attempt").filter((line) => line.endsWith("was not heard of again")).length;
}

/** The dead letters of a run: each message's number, reason and attempts, and of how many of these nobody heard how they ended. */
export async function deadLettersOf({ jsm, dead }: Prepared) {
  const { streams } = await jsm();
  const { state } = await streams.info(dead.name);
  const found = [];
  for (let seq = state.first_seq; seq <= state.last_seq; seq++) {
    const letter = await streams.getMessage(dead.name, { seq });
    if (!letter) continue;
    const { n } = letter.json<{ n: number }>();
    const { header } = letter;
    const attempts = Number(header.get("Sortie-Attempts"));
    const story = header.values("Sortie-Attempt");
    found.push({ n, reason: header.get("Sortie-Reason"), attempts, unheard: unheardIn(header), story });
  }
  return found.toSorted((a, b) => a.n - b.n);
}

/** What handlers published, and how often the server has it: `7.first` is the first one of message 7. */
export async function resultsOf({ jsm, results, run }: Prepared): Promise<Map<string, number>> {
  const { streams } = await jsm();
  const { state } = await streams.info(results.name, { subjects_filter: ">" });
  const prefix = `results.${run}.`;
  return new Map(Object.entries(state.subjects ?? {}).map(([subject, times]) => [subject.slice(prefix.length), times]));
}

/** What handlers of these messages publish, once each. */
export function resultsFor(numbers: readonly number[]): Map<string, number> {
  return new Map(numbers.flatMap((n) => [`${n}.first`, `${n}.second`].map((name) => [name, 1] as const)));
}

/** All invariants, as the server bears them out; `reasons` for which a message that always fails may be dead as well. */
export async function expectInvariants(prepared: Prepared, reasons: readonly string[] = []): Promise<void> {
  const { jobs, numbers, fate, worker } = prepared;
  const { attempts } = worker.retry;
  const { streams } = await prepared.jsm();
  const starts = startsIn(prepared);
  const failed = numbers.filter((n) => fate(n) === "fails for good");
  const sameAs = (n: number, m: number) => (prepared.agreeing ? keyOf(n) === keyOf(m) : n === m);
  const publishing = numbers.filter((n) => !["fails for good", "succeeds"].includes(fate(n)));

  const letters = await deadLettersOf(prepared);
  const reason = expect.toBeOneOf(["attempts-exhausted", ...reasons]);
  const unheard = expect.any(Number);
  const story = expect.any(Array);
  const unforeseen = letters.filter(({ n }) => !failed.includes(n)).map(({ n, story }) => `${n}: ${story.join("; ")}`);
  expect(unforeseen, "dead letters of messages that do not fail for good, with their stories").toEqual([]);
  expect(letters, "the dead letters").toEqual(failed.map((n) => ({ n, reason, attempts, unheard, story })));
  // one that was struck between the record of a start and the start itself is charged it: decision 0005
  const early = letters.filter((letter) => (starts.get(letter.n)?.length ?? 0) < letter.attempts - letter.unheard);
  expect(early, "dead letters with fewer starts than attempts that were heard of").toEqual([]);
  expect(await resultsOf(prepared), "what handlers published").toEqual(resultsFor(publishing));
  expect(
    numbers.filter((n) => !numbers.some((m) => sameAs(n, m) && starts.get(m)?.length)),
    "messages without a start",
  ).toEqual([]);
  expect((await streams.info(jobs.name)).state.messages, "what is left in the work queue").toBe(0);
  const { state } = await streams.info("SORTIE_PARKED", { subjects_filter: `sortie.parked.${jobs.name}.>` });
  expect(Object.keys(state.subjects ?? {}), "what is left parked").toEqual([]);
}
