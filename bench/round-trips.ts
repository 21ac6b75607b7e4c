import { setTimeout as sleep } from "node:timers/promises";
import { type Consumer, jetstream } from "@nats-io/jetstream";
import { type NatsConnection, wsconnect } from "@nats-io/nats-core";
import { connect } from "../src/nats/connection.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { type Stretch, startStretch } from "../test/support/stretch.ts";
import { type Backlog, startBacklog } from "./backlog.ts";
import type { Bench, Report } from "./report.ts";
import { inRounds, median } from "./rounds.ts";
import { dialling, invokeOn, keeping } from "./sortie.ts";

const delayMs = 25; // each way
const batch = 100;

/** How long a part of an invocation took, and how often the client had its say in it. */
interface Part {
  readonly ms: number;
  readonly flights: number;
}

interface Parts {
  /** From the start until the first message was in hand, if there was one. */
  readonly first: Part;
  /** From the end of the last handler until the invocation could safely end. */
  readonly end: Part;
  readonly whole: Part;
}

/** Makes one invocation ready, over a backlog with so many messages; it calls `handle` for each of them. */
type Invocation = (backlog: Backlog, waiting: number, handle: () => void) => Promise<() => Promise<unknown>>;

/** How many round trips an invocation takes, over a network that is slow and steady. */
export async function roundTrips({ quick, report }: Bench): Promise<void> {
  report.section("Round trips", `through a proxy ${delayMs} ms away each way; ws://, without what TCP and TLS take`);
  await using server = await startNatsServer();
  await using proxy = await startStretch(server.url, delayMs);
  const near = await wsconnect({ servers: server.url });
  const bare = await wsconnect({ servers: proxy.url });
  const ours = await connect({ url: proxy.url }, 5_000);
  const rtt = await measuredRtt(bare);
  const cases: { name: string; waiting: number; run: Invocation }[] = [];
  const add = (name: string, run: Invocation, ...counts: number[]) => {
    for (const waiting of counts) cases.push({ name: `${name}, ${waiting}`, waiting, run });
  };
  add("Sortie cold", async (backlog) => () => invokeOn(backlog, dialling(proxy.url)), 10, 0);
  add("Sortie warm", async (backlog) => () => invokeOn(backlog, keeping(ours)), 10, 0);
  const asked = (waiting: number) => waiting || batch; // as many as there are, or it would wait for the others
  add("bare cold", async (backlog, waiting, handle) => () => cold(proxy.url, backlog, asked(waiting), handle), 10, 0);
  add("bare warm", (backlog, waiting, handle) => warm(bare, backlog, asked(waiting), handle), 10, 0);
  add("bare warm, asked for more", (backlog, _waiting, handle) => warm(bare, backlog, batch, handle), 10);
  const contenders = cases.map(({ name, waiting, run }) => ({ name, run: () => timed(near, proxy, waiting, run) }));
  const results = await inRounds(contenders, quick ? 1 : 3, (name, done) => report.progress(name, done));
  await Promise.all([ours.close(), bare.close(), near.close()]);
  show(report, results, rtt);
}

async function timed(near: NatsConnection, proxy: Stretch, waiting: number, run: Invocation): Promise<Parts> {
  const now = (): Part => ({ ms: performance.now(), flights: proxy.flights });
  const between = (from: Part, to: Part) => ({ ms: to.ms - from.ms, flights: to.flights - from.flights });
  let first: Part | undefined;
  let last: Part | undefined;
  const handler = () => {
    last = now();
    first ??= last;
  };
  const backlog = await startBacklog(near, waiting, { batch, concurrency: batch, handler });
  const invoked = await run(backlog, waiting, handler);
  await sleep(2 * delayMs); // what was sent before has arrived
  const started = now();
  await invoked();
  const ended = now();
  await backlog.cleared();
  return {
    first: between(started, first ?? ended),
    end: between(last ?? started, ended),
    whole: between(started, ended),
  };
}

async function cold(url: string, { stream, consumer }: Backlog, ask: number, handle: () => void): Promise<void> {
  const nc = await wsconnect({ servers: url });
  await fetchOnce(await jetstream(nc).consumers.get(stream, consumer), ask, handle);
  await nc.drain();
}

/** With the consumer looked up before, as a function that keeps its connection can keep it as well. */
async function warm(nc: NatsConnection, { stream, consumer }: Backlog, ask: number, handle: () => void) {
  const kept = await jetstream(nc).consumers.get(stream, consumer);
  return async () => {
    await fetchOnce(kept, ask, handle);
    await nc.flush();
  };
}

async function fetchOnce(consumer: Consumer, ask: number, handle: () => void): Promise<void> {
  const messages = await consumer.fetch({ max_messages: ask, expires: 1_000 }); // the shortest that it takes
  for await (const message of messages) {
    handle();
    message.ack();
  }
}

async function measuredRtt(nc: NatsConnection): Promise<number> {
  const all: number[] = [];
  for (let n = 0; n < 9; n++) all.push(await nc.rtt());
  return median(all);
}

function show(report: Report, results: ReadonlyMap<string, Parts[]>, rtt: number): void {
  const of = (name: string, part: keyof Parts): Part => {
    const parts = (results.get(name) ?? []).map((one) => one[part]);
    return { ms: median(parts.map(({ ms }) => ms)), flights: median(parts.map(({ flights }) => flights)) };
  };
  const rows = [
    ["cold: start to first message", "first", "Sortie cold, 10", "bare cold, 10"],
    ["cold: last handler to safe end", "end", "Sortie cold, 10", "bare cold, 10"],
    ["cold: all of it", "whole", "Sortie cold, 10", "bare cold, 10"],
    ["cold: all of it, nothing there", "whole", "Sortie cold, 0", "bare cold, 0"],
    ["warm: start to first message", "first", "Sortie warm, 10", "bare warm, 10"],
    ["warm: last handler to safe end", "end", "Sortie warm, 10", "bare warm, 10"],
    ["warm: all of it, 10 there of 100 asked for", "whole", "Sortie warm, 10", "bare warm, asked for more, 10"],
    ["warm: all of it, nothing there", "whole", "Sortie warm, 0", "bare warm, 0"],
  ] as const;
  const picture = rows.slice(2, 3).flatMap(([, part, ours, bare]) => [
    { label: "Sortie", value: of(ours, part).ms / rtt, ours: true },
    { label: "bare client", value: of(bare, part).ms / rtt },
  ]);
  report.picture(
    "round trips of a cold invocation over ten messages",
    picture.map((bar) => ({ ...bar, text: bar.value.toFixed(1) })),
  );
  report.table(
    [`round trips (of ${rtt.toFixed(1)} ms)`, "Sortie", "flights", "bare client", "flights"],
    rows.map(([what, part, ...names]) => {
      const cells = names.flatMap((name) => {
        const { ms, flights } = of(name, part);
        return [`${(ms / rtt).toFixed(2)} (${ms.toFixed(0)} ms)`, `${flights}`];
      });
      return [what, ...cells];
    }),
  );
  report.note(
    "Bare: wsconnect, consumers.get, fetch({ max_messages, expires: 1000 }), ack, drain; warm: fetch, ack, flush.",
  );
  report.note("It asks for no more than is there, but where the table says so: its fetch waits for the rest.");
  const trips = (claim: string, { ms, flights }: Part, most: number) =>
    report.target(
      claim,
      `${flights} flight${flights === 1 ? "" : "s"}, ${(ms / rtt).toFixed(2)} round trips`,
      flights <= most,
    );
  trips("From start to first message, cold, in two round trips", of("Sortie cold, 10", "first"), 2);
  trips("From last handler to safe end, cold, in one", of("Sortie cold, 10", "end"), 1);
  trips("From last handler to safe end, warm, in one", of("Sortie warm, 10", "end"), 1);
  trips("A warm invocation that finds nothing, in one", of("Sortie warm, 0", "whole"), 1);
  const late = of("Sortie warm, 0", "whole").ms - rtt;
  report.target("An empty pull within one round trip + 5 ms", `one + ${late.toFixed(1)} ms`, late <= 5);
}
