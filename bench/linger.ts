import { setTimeout as sleep } from "node:timers/promises";
import { jetstream } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import type { Linger } from "../src/consume/invocation.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { type Backlog, startBacklog } from "./backlog.ts";
import { orderAt } from "./order.ts";
import type { Bench, Report } from "./report.ts";
import { quantile } from "./rounds.ts";
import { dialling, invokeOn } from "./sortie.ts";

/** A cron, and the time that each invocation of it may take, in milliseconds; the adapter's own are a minute and 65 s. */
const minutely = { everyMs: 60_000, budgetMs: 65_000 };
const quickly = { everyMs: 5_000, budgetMs: 6_000 };

const ticks = 3;
const perSecond = 20;

/** How long a message waits for its handler while cron triggers come and go. */
export async function linger({ quick, report }: Bench): Promise<void> {
  const { everyMs, budgetMs } = quick ? quickly : minutely;
  const aroundMs = everyMs / 6;
  const totalMs = (ticks - 1) * everyMs + 2 * aroundMs;
  report.section(
    "Latency across cron ticks",
    `${perSecond} messages a second at random moments; a tick every ${everyMs / 1_000} s, budget ${budgetMs / 1_000} s, ${ticks} ticks`,
  );
  await using server = await startNatsServer();
  const nc = await wsconnect({ servers: server.url });
  const started = performance.now();
  const timer = setInterval(() => {
    const ms = performance.now() - started;
    report.progress(`${Math.round((totalMs - ms) / 1_000)} s to go`, ms / totalMs);
  }, 250);

  /** Latencies, by when the message was published. */
  async function measured(how: Linger): Promise<{ handled: { at: number; ms: number }[]; waiting: number }> {
    const publishedAt: number[] = [];
    const handled: { at: number; ms: number }[] = [];
    const handler = ({ data }: { data: unknown }) => {
      const at = publishedAt[Number((data as { orderId: string }).orderId.slice(6))] ?? Number.NaN;
      handled.push({ at: at - started, ms: performance.now() - at });
    };
    const backlog = await startBacklog(nc, 0, { handler });
    const [published, invoked] = [publishAtRandom(backlog, publishedAt), invokeOnCron(backlog, how)];
    await Promise.all([published, invoked]);
    return { handled, waiting: publishedAt.length - handled.length };
  }

  async function publishAtRandom({ subject }: Backlog, publishedAt: number[]): Promise<void> {
    const js = jetstream(nc);
    while (performance.now() - started < totalMs) {
      await sleep((-Math.log(1 - Math.random()) * 1_000) / perSecond);
      publishedAt.push(performance.now());
      await js.publish(subject, JSON.stringify(orderAt(publishedAt.length - 1)));
    }
  }

  /** The first one is there already, begun one tick before; the last one leaves when all is over. */
  async function invokeOnCron(backlog: Backlog, how: Linger): Promise<void> {
    const invocations: Promise<unknown>[] = [];
    for (let tick = 0; tick <= ticks; tick++) {
      const at = tick * everyMs + aroundMs - everyMs;
      await sleep(Math.max(0, started + at - performance.now()));
      const untilMs = Math.min(at + budgetMs, totalMs + 2_000);
      const deadline = Date.now() + untilMs - (performance.now() - started);
      invocations.push(invokeOn(backlog, { ...dialling(server.url), linger: how, deadline }));
    }
    await Promise.all(invocations);
  }

  const [stayed, left] = await Promise.all([measured("until-budget"), measured("drain")]);
  clearInterval(timer);
  await nc.close();
  // what a drain has not seen by the last tick would wait for the next one: only what had its tick counts
  const lastTickMs = (ticks - 1) * everyMs + aroundMs;
  const had = left.handled.filter(({ at }) => at < lastTickMs);
  const ms = (all: readonly { ms: number }[]) => all.map((one) => one.ms);
  show(report, { stayed: ms(stayed.handled), left: ms(had), waiting: stayed.waiting });
}

function show(report: Report, { stayed, left, waiting }: { stayed: number[]; left: number[]; waiting: number }): void {
  const ms = (value: number) => (value < 1_000 ? `${value.toFixed(1)} ms` : `${(value / 1_000).toFixed(1)} s`);
  const p99 = quantile(stayed, 0.99);
  report.picture("p99 from publish to handler", [
    { label: 'linger "until-budget"', value: p99, text: ms(p99), ours: true },
    { label: 'linger "drain"', value: quantile(left, 0.99), text: ms(quantile(left, 0.99)), ours: true },
  ]);
  report.table(
    ["publish to handler", "messages", "p50", "p99", "max"],
    Object.entries({ 'linger "until-budget"': stayed, 'linger "drain"': left }).map(([name, all]) => {
      return [name, `${all.length}`, ...[0.5, 0.99, 1].map((share) => ms(quantile(all, share)))];
    }),
  );
  const unhandled = `${waiting} of ${stayed.length + waiting} still waited at the end`;
  report.target(
    "p99 below 100 ms through three cron ticks, none left waiting",
    `${ms(p99)}, ${unhandled}`,
    p99 < 100 && waiting === 0,
  );
}
