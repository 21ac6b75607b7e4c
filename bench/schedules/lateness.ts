import { startBullMq } from "../queues/bullmq.ts";
import { startGraphileWorker } from "../queues/graphile-worker.ts";
import { startPgBoss } from "../queues/pg-boss.ts";
import type { Delaying } from "../queues/queue.ts";
import { startSortieSchedules } from "../queues/sortie-schedules.ts";
import type { Bench, Report } from "../report.ts";
import { quantile } from "../rounds.ts";

const byFunction = "Sortie, a function";

const starts: readonly (() => Promise<Delaying>)[] = [
  () => startSortieSchedules("server"),
  () => startSortieSchedules("function"),
  () => startSortieSchedules("function", "2.10"),
  () => startBullMq("everysec"),
  startPgBoss,
  () => startGraphileWorker("in batches"),
];

interface Measured extends Pick<Delaying, "name" | "server"> {
  readonly settings: string;
  /** How late each was, in milliseconds, by load. */
  readonly late: ReadonlyMap<string, readonly number[]>;
}

/** How late what is due is released, beside other queues, each on a server of its own that runs alone. */
export async function lateness({ quick, report }: Bench): Promise<void> {
  const count = quick ? 500 : 10_000;
  const overMs = quick ? 1_000 : 10_000;
  const aheadMs = quick ? 1_000 : 6_000;
  const loads = {
    [`${count.toLocaleString("en")} due over ${overMs / 1_000} s`]: (n: number) => Math.floor((n * overMs) / count),
    [`${count.toLocaleString("en")} due in the same millisecond`]: () => 0,
  };
  const all: Measured[] = [];
  for (const [at, start] of starts.entries()) {
    try {
      await using queue = await start();
      const { name, server, later } = queue;
      const late = new Map<string, number[]>();
      for (const [load, dueAt] of Object.entries(loads)) {
        report.progress(`${load}: ${name}`, 0.4 + (0.6 * (at + late.size / 2)) / starts.length);
        const from = Date.now() + aheadMs;
        late.set(load, await later.lateness(Array.from({ length: count }, (_, n) => from + dueAt(n))));
      }
      all.push({ name, server, settings: later.settings, late });
    } catch (error) {
      report.note(`Left out: ${error instanceof Error ? error.message : error}`);
    }
  }
  for (const load of Object.keys(loads)) show(report, load, all);
  for (const { name, server, settings } of all) report.note(`${name}: ${server}; ${settings}`);
  report.note(
    "Late: of Sortie, from when it was due until the server has stored what was released, by the server's clock;",
  );
  report.note("of the others until the handler starts, in whole milliseconds: when they release is not to be seen.");
}

function show(report: Report, load: string, all: readonly Measured[]): void {
  const ofAll = all.map(({ name, late }) => ({ name, late: late.get(load) ?? [] }));
  const ms = (value: number) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
  report.picture(
    `late at the 99th percentile, ${load}`,
    ofAll.map(({ name, late }) => {
      const value = quantile(late, 0.99);
      return { label: name, value, text: ms(value), ours: name.startsWith("Sortie") };
    }),
  );
  report.table(
    [load, "p50", "p99", "max", "early"],
    ofAll.map(({ name, late }) => {
      const early = late.filter((value) => value < 0).length;
      return [name, ...[0.5, 0.99, 1].map((share) => ms(quantile(late, share))), `${early}`];
    }),
  );
  const ours = ofAll.find(({ name }) => name === byFunction)?.late ?? [];
  const p99 = quantile(ours, 0.99);
  const early = ours.filter((value) => value < 0).length;
  report.target(
    `Released by a function, ${load}: p99 within 50 ms, none early`,
    ours.length > 0 ? `${ms(p99)}, ${early} early` : "not measured, it failed",
    p99 <= 50 && early === 0,
  );
}
