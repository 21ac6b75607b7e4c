import { startBullMq } from "./queues/bullmq.ts";
import { startGraphileWorker } from "./queues/graphile-worker.ts";
import { startPgBoss } from "./queues/pg-boss.ts";
import type { Queue } from "./queues/queue.ts";
import { startSortie } from "./queues/sortie.ts";
import { type Bench, type Report, thousands } from "./report.ts";
import { inRounds, median, ratio } from "./rounds.ts";

const asItComes = "Sortie";
const strict = "Sortie, fsync always";
const strictAndKept = "Sortie, fsync always, limits";

/** How many jobs a second, beside other queues, each on its own server and as safe as its documentation calls safe. */
export async function queues({ quick, report }: Bench): Promise<void> {
  report.section("Other queues", "jobs per second that wait already, handled by one process with nothing to do");
  const count = quick ? 5_000 : 20_000;
  await using running = new AsyncDisposableStack();
  const all: Queue[] = [];
  let left = 0; // out
  const starts = [
    () => startSortie(asItComes),
    () => startSortie(strict, "always"),
    () => startSortie(strictAndKept, "always", "limits"),
    () => startBullMq("everysec"),
    () => startBullMq("always"),
    startPgBoss,
    () => startGraphileWorker("in batches"),
    () => startGraphileWorker("each by itself"),
  ];
  for (const [at, start] of starts.entries()) {
    report.progress("starting servers", at / starts.length / 10);
    try {
      all.push(running.use(await start()));
    } catch (error) {
      left += 1;
      report.note(`Left out: ${error instanceof Error ? error.message : error}`);
    }
  }
  const contenders = all.map(({ name, share = 1, fill, drain }) => ({
    name,
    async run() {
      const jobs = count * share;
      await fill(jobs);
      const started = performance.now();
      await drain(jobs);
      return (jobs / (performance.now() - started)) * 1_000;
    },
  }));
  const told = (name: string, done: number) => report.progress(`${count} jobs: ${name}`, 0.1 + 0.9 * done);
  show(report, all, await inRounds(contenders, quick ? 1 : 3, told), left);
}

function show(report: Report, all: readonly Queue[], results: ReadonlyMap<string, number[]>, left: number): void {
  const speeds = (name: string) => results.get(name) ?? [];
  const times = (other: string, whose = asItComes) => ratio(speeds(whose), speeds(other));
  report.picture(
    "jobs per second",
    all.map(({ name }) => {
      const value = median(speeds(name));
      return { label: name, value, text: `${thousands(value)}/s`, ours: name.startsWith("Sortie") };
    }),
  );
  report.table(
    ["jobs/s", "median", "slowest to fastest", "Sortie is", "fsync always is", "and limits is"],
    all.map(({ name }) => {
      const [slowest, fastest] = [Math.min(...speeds(name)), Math.max(...speeds(name))];
      const spread = `${thousands(slowest)} to ${thousands(fastest)}`;
      const ratios = [asItComes, strict, strictAndKept]
        .map((whose) => times(name, whose))
        .map((value) => `${value.toFixed(2)}×`);
      return [name, thousands(median(speeds(name))), spread, ...ratios];
    }),
  );
  for (const { name, server, settings } of all) report.note(`${name}: ${server}; ${settings}`);
  for (const line of [
    "Redis syncs every second unless told `always`, PostgreSQL at every commit. nats-server acknowledges what it has",
    "written, and syncs every two minutes, or with `always` at every message that it stores or removes, one by one; what",
    "was settled in a limits stream it writes within a tenth of a second, and what of it is lost comes again.",
  ])
    report.note(line);
  const others = all.filter(({ name }) => !name.startsWith("Sortie"));
  const claim = "Confirmed, at batch 100, at least 5 × the best of them";
  if (left > 0 || others.length === 0) {
    report.target(claim, `not measured, ${left} were left out`, false);
    return;
  }
  const best = others.reduce((one, other) => (median(speeds(other.name)) > median(speeds(one.name)) ? other : one));
  const measured = times(best.name);
  const ours = all.find(({ name }) => name === asItComes);
  report.target(
    `${claim} (${best.name}: ${best.server}; Sortie: ${ours?.server})`,
    `${measured.toFixed(2)} ×`,
    measured >= 5,
  );
}
