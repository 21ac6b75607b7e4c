import { jetstream } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { connect, disconnect } from "../src/nats/connection.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { type Backlog, startBacklog } from "./backlog.ts";
import { type BareLoop, consumeAndAck, fetchAndAck, fetchAndAckAck, fetchAndAwaitAckAck } from "./bare.ts";
import { cpuMs } from "./cpu.ts";
import { type Bench, type Report, thousands } from "./report.ts";
import { type Contender, inRounds, median, ratio } from "./rounds.ts";
import { invokeOn, keeping } from "./sortie.ts";

/** Messages in one run of each batch size: enough for a few tenths of a second. */
const counts = { 1: 600, 10: 4_000, 100: 12_000, 1000: 20_000 };
const base = "bare fetch, ack, flush";

interface Run {
  readonly perSecond: number;
  /** Processor time of one message, in microseconds. */
  readonly clientUs: number;
  readonly serverUs: number;
}

/** How many messages a second are handled and settled. */
export async function throughput({ quick, report }: Bench): Promise<void> {
  report.section("Throughput", "messages settled per second by a handler that does nothing, over a kept connection");
  await using server = await startNatsServer();
  const nc = await wsconnect({ servers: server.url });
  const kept = await connect({ url: server.url }, 5_000);
  const sizes = Object.entries(counts).map(([batch, count]) => ({
    batch: Number(batch),
    count: quick ? count / 4 : count,
  }));
  let again = 0;
  const results = new Map<number, Map<string, Run[]>>();
  for (const [at, { batch, count }] of sizes.entries()) {
    const ours = (confirm: "together" | "each"): Contender<Run>["run"] =>
      run(count, { batch, confirm }, async (backlog) => () => settleAll(backlog, count));
    const bare = (loop: BareLoop, some = count): Contender<Run>["run"] =>
      run(some, { batch }, async (backlog) => {
        const consumer = await jetstream(nc).consumers.get(backlog.stream, backlog.consumer);
        return () => loop(nc, consumer, batch, some);
      });
    const contenders = [
      { name: "Sortie, confirmed together", run: ours("together") },
      { name: "Sortie, confirmed each", run: ours("each") },
      { name: base, run: bare(fetchAndAck) },
      { name: "bare consume, ack, flush", run: bare(consumeAndAck) },
      { name: "bare fetch, ackAck at once", run: bare(fetchAndAckAck) },
      { name: "bare fetch, await ackAck", run: bare(fetchAndAwaitAckAck, Math.min(count, 1_000)) },
    ];
    const told = (name: string, done: number) => report.progress(`batch ${batch}: ${name}`, (at + done) / sizes.length);
    results.set(batch, await inRounds(contenders, quick ? 1 : 5, told));
  }
  disconnect(kept);
  await nc.close();
  show(report, results);
  if (again > 0) report.note(`In ${again} runs an invocation ended before the queue was empty, and another went on.`);

  async function settleAll(backlog: Backlog, count: number): Promise<void> {
    for (let acked = 0; acked < count; ) {
      if (acked > 0) again += 1;
      const one = await invokeOn(backlog, keeping(kept));
      if (one.pulled === 0) throw new Error(`An invocation found nothing where ${count - acked} messages waited`);
      acked += one.acked;
    }
  }

  function run(
    count: number,
    { batch, confirm = "together" }: { batch: number; confirm?: "together" | "each" },
    prepare: (backlog: Backlog) => Promise<() => Promise<void>>,
  ): Contender<Run>["run"] {
    return async () => {
      const backlog = await startBacklog(nc, count, { batch, concurrency: batch, confirm });
      const work = await prepare(backlog);
      const [started, before, serverBefore] = [performance.now(), process.cpuUsage(), cpuMs(server.pid)];
      await work();
      const ms = performance.now() - started;
      const { user, system } = process.cpuUsage(before);
      const serverUs = ((cpuMs(server.pid) - serverBefore) * 1_000) / count;
      await backlog.cleared();
      return { perSecond: (count / ms) * 1_000, clientUs: (user + system) / count, serverUs };
    };
  }
}

function show(report: Report, results: ReadonlyMap<number, ReadonlyMap<string, Run[]>>): void {
  const runs = (batch: number, name: string) => results.get(batch)?.get(name) ?? [];
  const speeds = (batch: number, name: string) => runs(batch, name).map(({ perSecond }) => perSecond);
  const times = (batch: number, name: string, other: string) => ratio(speeds(batch, name), speeds(batch, other));
  const names = [...(results.get(100)?.keys() ?? [])];
  report.picture(
    "at batch 100",
    names.map((label) => {
      const value = median(speeds(100, label));
      return { label, value, text: `${thousands(value)}/s`, ours: label.startsWith("Sortie") };
    }),
  );
  report.table(
    [
      "messages/s, × bare fetch",
      ...[...results.keys()].map((batch) => `batch ${batch}`),
      "CPU µs at 100: client + server",
    ],
    names.map((name) => {
      const cpu = (of: "clientUs" | "serverUs") => median(runs(100, name).map((run) => run[of])).toFixed(1);
      const cells = [...results.keys()].map(
        (batch) => `${thousands(median(speeds(batch, name)))} ${times(batch, name, base).toFixed(2)}×`,
      );
      return [name, ...cells, `${cpu("clientUs")} + ${cpu("serverUs")}`];
    }),
  );
  report.note("Sortie decodes each payload and checks it with zod; the bare loops do not look at it.");
  report.note(
    "Confirmed: the server has answered for every message. Unconfirmed acknowledgements may be lost unnoticed.",
  );
  const together = "Sortie, confirmed together";
  const claims = [
    { other: base, least: 1 },
    { other: "bare fetch, ackAck at once", least: 3 },
  ];
  for (const { other, least } of claims) {
    const measured = times(100, together, other);
    report.target(
      `Confirmed, at batch 100, at least ${least} × "${other}"`,
      `${measured.toFixed(2)} ×`,
      measured >= least,
    );
  }
}
