import { wsconnect } from "@nats-io/nats-core";
import type { ConsumerOptions } from "../src/define/consumer.ts";
import { connect, disconnect } from "../src/nats/connection.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { startStretch } from "../test/support/stretch.ts";
import { startBacklog } from "./backlog.ts";
import { type Bench, type Report, thousands } from "./report.ts";
import { inRounds, median, ratio } from "./rounds.ts";
import { invokeOn, keeping } from "./sortie.ts";

const batch = 100;
const delayMs = 25; // each way
const plain = "plain";

/** What a consumer may have on; none of them holds anything back here. */
const features: Record<
  string,
  Pick<ConsumerOptions<string>, "idempotency" | "rateLimit" | "breaker"> & { together?: number }
> = {
  [plain]: {},
  "handleBatch, 10 at once": { together: 10 },
  idempotency: { idempotency: { ttl: "1h" } },
  "rate limit": { rateLimit: { messages: 1_000_000_000, per: "1m", burst: 1_000_000 } },
  "rate limit by key": {
    rateLimit: { messages: 1_000_000_000, per: "1m", burst: 1_000_000, key: ({ sequence }) => `${sequence % 10}` },
  },
  "circuit breaker": { breaker: { failureRatio: 0.5 } },
};

interface Run {
  readonly perSecond: number;
  /** Processor time of one message, in microseconds. */
  readonly clientUs: number;
}

/** What each thing costs that invocations agree on, beside the plain path. */
export async function limits({ quick, report }: Bench): Promise<void> {
  report.section("What agreeing costs", `at batch ${batch}, over a kept connection, with a handler that does nothing`);
  await using server = await startNatsServer();
  const nc = await wsconnect({ servers: server.url });
  const kept = await connect({ url: server.url }, 5_000);
  const count = quick ? 2_000 : 10_000;
  const speeds = Object.entries(features).map(([name, options]) => ({
    name,
    async run(): Promise<Run> {
      const backlog = await startBacklog(nc, count, { ...options, batch, concurrency: batch });
      const [started, before] = [performance.now(), process.cpuUsage()];
      for (let acked = 0; acked < count; ) acked += (await invokeOn(backlog, keeping(kept))).acked;
      const ms = performance.now() - started;
      const { user, system } = process.cpuUsage(before);
      await backlog.cleared();
      return { perSecond: (count / ms) * 1_000, clientUs: (user + system) / count };
    },
  }));
  const told = (name: string, done: number) => report.progress(name, done / 2);
  const throughput = await inRounds(speeds, quick ? 1 : 5, told);

  await using proxy = await startStretch(server.url, delayMs);
  const far = await connect({ url: proxy.url }, 5_000);
  const trips = Object.entries(features).map(([name, options]) => ({
    name,
    async run(): Promise<number> {
      const backlog = await startBacklog(nc, batch / 2, { ...options, batch, concurrency: batch });
      const started = performance.now();
      await invokeOn(backlog, keeping(far));
      const ms = performance.now() - started;
      await backlog.cleared();
      return ms / (2 * delayMs);
    },
  }));
  const roundTrips = await inRounds(trips, quick ? 1 : 3, (name, done) => report.progress(name, 0.5 + done / 2));
  disconnect(kept);
  disconnect(far);
  await nc.close();
  show(report, throughput, roundTrips);
}

function show(report: Report, results: ReadonlyMap<string, Run[]>, roundTrips: ReadonlyMap<string, number[]>): void {
  const of = (name: string, what: keyof Run) => (results.get(name) ?? []).map((run) => run[what]);
  const names = Object.keys(features);
  report.picture(
    "messages per second",
    names.map((label) => {
      const value = median(of(label, "perSecond"));
      return { label, value, text: `${thousands(value)}/s`, ours: true };
    }),
  );
  report.table(
    ["with", "messages/s", "× plain", "CPU of one message", "× plain", "round trips of a warm invocation"],
    names.map((name) => [
      name,
      thousands(median(of(name, "perSecond"))),
      `${ratio(of(name, "perSecond"), of(plain, "perSecond")).toFixed(2)}×`,
      `${median(of(name, "clientUs")).toFixed(1)} µs`,
      `${ratio(of(name, "clientUs"), of(plain, "clientUs")).toFixed(2)}×`,
      median(roundTrips.get(name) ?? []).toFixed(1),
    ]),
  );
  report.note(`Round trips: of an invocation over ${batch / 2} messages, through a proxy ${delayMs} ms away each way.`);
  report.note("The plain path is the one of the section on throughput, beside the bare client: nothing is paid there.");
}
