import { readFileSync } from "node:fs";
import { headers, wsconnect } from "@nats-io/nats-core";
import { type Connection, connect, disconnect } from "../../src/nats/connection.ts";
import { namelessFor } from "../../src/schedule/pending.ts";
import { release } from "../../src/schedule/release.ts";
import type { ServerVersion } from "../../test/support/servers.ts";
import { encodedOrder, laterBy, startSortieSchedules } from "../queues/sortie-schedules.ts";
import type { Bench, Report } from "../report.ts";
import { inRounds, median, quantile, ratio } from "../rounds.ts";

const stream = laterBy("function");
const dayMs = 86_400_000;
const few = 1_000;
const dueCount = 1_000;

/** Something that ticks beside schedules that are due on other days. */
interface Waiting {
  readonly name: string;
  /** Milliseconds of one tick. */
  readonly ticks: readonly number[];
  readonly requests: number;
  readonly rssMiB: number;
  /** How late others were that were due meanwhile. */
  readonly late: readonly number[];
}

/** What it costs a function to find that nothing is due, where few or very many schedules wait for other days. */
export async function tick({ quick, report }: Bench): Promise<void> {
  const many = quick ? 100_000 : 1_000_000;
  const newest = await besides("newest", [few, many], quick, (name, done) => report.progress(name, 0.1 + 0.2 * done));
  const old = await besides("2.9", [few, quick ? 20_000 : 100_000], quick, (name, done) =>
    report.progress(name, 0.3 + 0.1 * done),
  ).catch((error: unknown) => {
    report.note(`Left out: ${error instanceof Error ? error.message : error}`);
    return [];
  });
  show(report, newest, old);
}

/** Two servers of one version, with few and with many that wait, that have their ticks in turn. */
async function besides(
  version: ServerVersion,
  counts: readonly number[],
  quick: boolean,
  told: (name: string, done: number) => void,
): Promise<Waiting[]> {
  await using running = new AsyncDisposableStack();
  const all = [];
  for (const count of counts) {
    const { later, url, pid, server } = running.use(await startSortieSchedules("function", version));
    const name = `${server.split(",")[0]}, ${count.toLocaleString("en")} wait`;
    told(`storing them: ${name}`, 0);
    await fill(url, count);
    const connection = await connect({ url }, 5_000);
    running.defer(() => disconnect(connection));
    const asked = countingRequests(connection);
    all.push({ name, later, asked, rssMiB: rssMiB(pid), run: () => ticksOf(connection) });
  }
  const ticks = await inRounds(all, quick ? 10 : 25, (name, done) => told(`ticks: ${name}`, 0.5 + done / 4));
  const waiting: Waiting[] = [];
  for (const { name, later, asked, rssMiB, run } of all) {
    const before = asked();
    await run();
    const requests = (asked() - before) / ticksTogether;
    told(`${dueCount} due meanwhile: ${name}`, 0.75 + waiting.length / 8);
    const from = Date.now() + 1_000;
    const due = Array.from({ length: dueCount }, (_, n) => from + n * (quick ? 1 : 3));
    waiting.push({ name, ticks: ticks.get(name) ?? [], requests, rssMiB, late: await later.lateness(due) });
  }
  return waiting;
}

/** As `schedule` without an id stores them, but with a word of the server for every two thousandth only. */
async function fill(url: string, count: number): Promise<void> {
  const nc = await wsconnect({ servers: url });
  const now = Date.now();
  for (let n = 0; n < count; n++) {
    const at = now + 2 * dayMs + Math.floor((n * 30 * dayMs) / count);
    const order = { stream: stream.name, subject: "bench.later.placed", payload: encodedOrder(n) };
    const { subject, payload, ...pending } = namelessFor(order, { stream: stream.name, id: `far ${n}`, at }, now);
    const hdrs = headers();
    for (const [name, value] of pending.headers ?? []) hdrs.append(name, value);
    if (n % 2_000 === 1_999 || n === count - 1) await nc.request(subject, payload, { headers: hdrs, timeout: 60_000 });
    else nc.publish(subject, payload, { headers: hdrs });
  }
  await nc.close();
}

const ticksTogether = 5;

/** The median of some, in milliseconds, over a connection that is open. */
async function ticksOf(connection: Connection): Promise<number> {
  const ms: number[] = [];
  for (let n = 0; n < ticksTogether; n++) {
    const began = performance.now();
    const { streams } = await release(connection, [stream], { deadline: Date.now() + 60_000 });
    ms.push(performance.now() - began);
    const wrong = streams.find(({ released, error }) => released !== 0 || error);
    if (wrong) throw new Error(`A tick was to find nothing: ${JSON.stringify(wrong)}`);
  }
  return median(ms);
}

function countingRequests(connection: Connection): () => number {
  const request = connection.request.bind(connection);
  let asked = 0;
  connection.request = (...what) => {
    asked += 1;
    return request(...what);
  };
  return () => asked;
}

/** What a process has in memory; NaN where there is no /proc. */
function rssMiB(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1_024;
  } catch {
    return Number.NaN;
  }
}

function show(report: Report, newest: readonly Waiting[], old: readonly Waiting[]): void {
  const ms = (value: number) => `${value.toFixed(1)} ms`;
  const times = ([first, last]: readonly Waiting[]) => ratio(last?.ticks ?? [], first?.ticks ?? []);
  report.picture(
    "a tick that finds nothing due",
    [...newest, ...old].map(({ name, ticks }) => {
      return { label: name, value: median(ticks), text: ms(median(ticks)), ours: true };
    }),
  );
  report.table(
    ["a tick", "takes", "× few", "requests", "server's memory", `${dueCount} due meanwhile: late p50`, "p99", "max"],
    [newest, old].flatMap((all) =>
      all.map(({ name, ticks, requests, rssMiB, late }, at) => [
        name,
        ms(median(ticks)),
        at === 0 ? "1.00×" : `${times(all).toFixed(2)}×`,
        `${requests}`,
        `${rssMiB.toFixed(0)} MiB`,
        ...[0.5, 0.99, 1].map((share) => ms(quantile(late, share))),
      ]),
    ),
  );
  if (old.length > 0)
    report.note("nats-server 2.9 goes through all its subjects to find some: there a tick grows with what waits.");
  const measured = times(newest);
  report.target(
    `A tick beside ${newest.at(-1)?.name.split(", ").at(-1)?.replace(" wait", "")} that wait at most 1.2 × one beside ${few.toLocaleString("en")}`,
    `${measured.toFixed(2)} ×`,
    measured <= 1.2,
  );
}
