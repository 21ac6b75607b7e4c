import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type JetStreamManager, jetstream, jetstreamManager } from "@nats-io/jetstream";
import type { NatsConnection } from "@nats-io/nats-core";
import { connect as connectTcp } from "@nats-io/transport-node";
import { expect } from "vitest";
import { invoke } from "../../src/consume/invocation.ts";
import { companionOf } from "../../src/define/own.ts";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import type { NatsServer } from "../../src/testing/nats-server.ts";
import { startProxy } from "../support/peers.ts";
import { ackWaitMs, attempts, fateOf, messages, scenario } from "./scenario.ts";
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

const victimFile = fileURLToPath(new URL("victim.ts", import.meta.url));
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

/** One run of the scenario: its streams on a server, with what handlers were started in a file. */
export async function prepare(observed: Observed, run: string, folder: string) {
  const { server, tcp } = observed;
  const log = join(folder, run);
  writeFileSync(log, "");
  const made = scenario(run, log);
  const { app, worker } = made;
  const connection = await connect({ url: server.url }, 5_000);
  await apply(connection, { streams: app.streams, consumers: [worker] });
  disconnect(connection);
  const js = jetstream(tcp);
  for (const n of messages) await js.publish(`jobs.${run}`, JSON.stringify({ n }));
  const jsm = () => jetstreamManager(observed.tcp, { checkAPI: false });
  return { ...made, run, log, observed, server, jsm };
}

export type Prepared = Awaited<ReturnType<typeof prepare>>;

/** Runs one invocation in a process of its own. */
export function startVictim(orders: Orders, flags: string[] = []): ChildProcess {
  return spawn(process.execPath, [...flags, victimFile, JSON.stringify(orders)], {
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
  const { server, run, log } = prepared;
  const found: { place: Place; times: number }[] = [];
  for (let stage = 0; stage <= lastStage; stage++) {
    if (stage === lastStage) await sleep(parkedMs);
    const { said, errors } = await ended(startVictim({ url: server.url, run, log, budgetMs }));
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

/** Strikes the first invocation, from the place's stage on, that comes to it; answers whether one did. */
export async function strike(prepared: Prepared, place: Place, fault: Fault): Promise<boolean> {
  for (let stage = 0; stage < place.stage; stage++) await invokeCleanly(prepared);
  if (place.stage === lastStage) await sleep(parkedMs);
  for (let tries = 0; tries < 5; tries++) if (await struck(prepared, place, fault)) return true;
  return false;
}

async function struck(prepared: Prepared, place: Place, fault: Fault): Promise<boolean> {
  const { server, run, log } = prepared;
  await using proxy = await startProxy(server.url);
  const victim = startVictim({ url: proxy.url, run, log, budgetMs, strike: place });
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
      prepared.observed.tcp = (await observe(server)).tcp;
    }
    if (fault === "freeze") {
      victim.kill("SIGSTOP");
      await sleep(ackWaitMs * 1.2);
      await invokeCleanly(prepared); // another one has what was in its hands
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
    await sleep(50);
  }
}

async function outstanding({ jsm, worker, jobs }: Prepared): Promise<number> {
  const consumers = [
    [jobs.name, worker.name],
    ["SORTIE_PARKED", companionOf(worker)],
  ] as const;
  const { consumers: looked } = await jsm();
  const infos = await Promise.all(consumers.map(([stream, name]) => looked.info(stream, name)));
  return infos.reduce((sum, { num_pending, num_ack_pending }) => sum + num_pending + num_ack_pending, 0);
}

/** How often a handler was started for each message, and with which attempts. */
export function startsIn({ log }: Prepared): Map<number, number[]> {
  const starts = new Map<number, number[]>(messages.map((n) => [n, []]));
  for (const line of readFileSync(log, "utf8").trim().split("\n").filter(Boolean)) {
    const [n = 0, attempt = 0] = line.split(" ").map(Number);
    starts.get(n)?.push(attempt);
  }
  return starts;
}

/** What the server holds of a stream. */
async function stored(jsm: JetStreamManager, stream: string) {
  const { state } = await jsm.streams.info(stream);
  const sequences = Array.from({ length: state.messages }, (_, index) => state.first_seq + index);
  const found = await Promise.all(sequences.map((seq) => jsm.streams.getMessage(stream, { seq })));
  return found.filter((message) => message !== null);
}

/** The dead letters of a run: each message's number, reason and attempts. */
export async function deadLettersOf({ jsm, dead }: Prepared) {
  return (await stored(await jsm(), dead.name)).map((letter) => ({
    n: letter.json<{ n: number }>().n,
    reason: letter.header.get("Sortie-Reason"),
    attempts: Number(letter.header.get("Sortie-Attempts")),
  }));
}

/** Where each result came from, in order: `first 3` is the first one of message 3. */
export async function resultsOf({ jsm, results }: Prepared): Promise<string[]> {
  const found = await stored(await jsm(), results.name);
  return found.map((result) => `${result.subject.split(".").at(-1)} ${result.json<{ n: number }>().n}`).sort();
}

/** All invariants, as the server bears them out. */
export async function expectInvariants(prepared: Prepared): Promise<void> {
  const { jobs } = prepared;
  const { streams } = await prepared.jsm();
  const starts = startsIn(prepared);
  const failed = messages.filter((n) => fateOf(n) === "fails for good");
  const silent = messages.filter((n) => fateOf(n) === "succeeds");
  const publishing = messages.filter((n) => !failed.includes(n) && !silent.includes(n));

  const letters = await deadLettersOf(prepared);
  expect(
    letters.map(({ n }) => n).sort((a, b) => a - b),
    "the dead letters",
  ).toEqual(failed);
  for (const { n, reason, attempts: told } of letters) {
    expect({ n, reason, told }).toEqual({ n, reason: "attempts-exhausted", told: attempts });
    expect(starts.get(n)?.length, `starts of dead letter ${n}`).toBeGreaterThanOrEqual(attempts);
  }
  const expected = publishing.flatMap((n) => [`first ${n}`, `second ${n}`]).sort();
  expect(await resultsOf(prepared), "what handlers published").toEqual(expected);
  for (const n of messages) expect(starts.get(n)?.length, `starts of ${n}`).toBeGreaterThan(0);
  expect((await streams.info(jobs.name)).state.messages, "what is left in the work queue").toBe(0);
  const { state } = await streams.info("SORTIE_PARKED", { subjects_filter: `sortie.parked.${jobs.name}.>` });
  expect(Object.keys(state.subjects ?? {}), "what is left parked").toEqual([]);
}
