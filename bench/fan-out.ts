import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { jetstreamManager } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { apply } from "../src/provision/apply.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { publishMany } from "./backlog.ts";
import { app, subject } from "./fan-out/app.ts";
import type { Drained } from "./fan-out/child.ts";
import { orderAt } from "./order.ts";
import { type Bench, type Report, thousands } from "./report.ts";

const widths = [1, 2, 4, 8];

interface Run {
  readonly width: number;
  readonly perSecond: number;
  /** Of the fastest and the slowest of them, how many messages each had. */
  readonly least: number;
  readonly most: number;
}

/** How much faster a backlog is gone where more invocations are at it, each in a process of its own. */
export async function fanOut({ quick, report }: Bench): Promise<void> {
  const many = quick ? 20_000 : 1_000_000;
  const few = quick ? 1_000 : 40_000;
  const handlers = [
    { what: "a handler that does nothing", count: many, ms: 0 },
    { what: "a handler that waits 10 ms, 16 at a time", count: few, ms: 10 },
  ];
  report.section("Fan-out", `a backlog is drained by ${widths.join(", ")} invocations, each in a process of its own`);
  await using server = await startNatsServer();
  const nc = await wsconnect({ servers: server.url });
  await apply(nc, { streams: app.streams, consumers: app.bindings.map(({ consumer }) => consumer) });
  const jsm = await jetstreamManager(nc, { checkAPI: false });
  for (const [at, { what, count, ms }] of handlers.entries()) {
    const runs: Run[] = [];
    for (const [nth, width] of widths.entries()) {
      const progress = (doing: string) =>
        report.progress(`${doing}, ${width} side by side`, (at + nth / widths.length) / handlers.length);
      progress(`publishing ${count} messages`);
      await publishMany(nc, subject, count, (n) => JSON.stringify(orderAt(n)));
      progress(`${count} messages`);
      runs.push(await drainedBy(width, server.url, count, ms));
      const { messages } = (await jsm.streams.info("BENCH_FAN_OUT")).state;
      if (messages > 0) throw new Error(`${width} invocations left ${messages} messages of ${count}`);
    }
    show(report, `${count.toLocaleString("en")} messages, ${what}`, runs);
  }
  await nc.close();
  report.note("All of them and the server share this machine's cores: where a handler takes processor time, these");
  report.note("are the bound. Where it waits, it is how many messages are waited for at the same time.");
}

/** All are connected before any of them begins. */
async function drainedBy(width: number, url: string, count: number, ms: number): Promise<Run> {
  const file = fileURLToPath(new URL("fan-out/child.ts", import.meta.url));
  const children = Array.from({ length: width }, () => fork(file, [url, `${ms}`]));
  const answer = async (child: ChildProcess): Promise<unknown> => {
    const ended = once(child, "exit").then(([code]) => {
      throw new Error(`One of ${width} invocations ended with code ${code} before it was through`);
    });
    return (await Promise.race([once(child, "message"), ended]))[0];
  };
  await Promise.all(children.map(answer)); // they are there
  const began = performance.now();
  const drained = children.map(answer);
  for (const child of children) child.send("go");
  const counts = ((await Promise.all(drained)) as Drained[]).map(({ acked }) => acked);
  const seconds = (performance.now() - began) / 1_000;
  const acked = counts.reduce((sum, one) => sum + one, 0);
  if (acked !== count) throw new Error(`${acked} messages of ${count} were acknowledged`);
  return { width, perSecond: count / seconds, least: Math.min(...counts), most: Math.max(...counts) };
}

function show(report: Report, title: string, runs: readonly Run[]): void {
  const alone = runs[0]?.perSecond ?? Number.NaN;
  const name = ({ width }: Run) => `${width} invocation${width === 1 ? "" : "s"}`;
  const times = ({ perSecond }: Run) => `${(perSecond / alone).toFixed(2)}×`;
  report.picture(
    title,
    runs.map((run) => ({ label: name(run), value: run.perSecond, text: times(run), ours: true })),
  );
  report.table(
    ["side by side", "messages/s", "× one", "in each, from … to"],
    runs.map((run) => [
      name(run),
      thousands(run.perSecond),
      times(run),
      `${thousands(run.least)} … ${thousands(run.most)}`,
    ]),
  );
}
