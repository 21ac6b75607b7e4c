import { fileURLToPath } from "node:url";
import { jetstreamManager } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { build } from "esbuild";
import { Miniflare } from "miniflare";
import { apply } from "../src/provision/apply.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { publishMany } from "./backlog.ts";
import { childrenNamed, cpuMs } from "./cpu.ts";
import { orderAt } from "./order.ts";
import type { Bench, Report } from "./report.ts";
import { inRounds, median, ratio } from "./rounds.ts";
import { app } from "./workerd/app.ts";

const empties = 20;

/** What Workers bill: the processor time of a message, in real workerd. */
export async function workerd({ quick, report }: Bench): Promise<void> {
  const count = quick ? 10_000 : 40_000;
  report.section("CPU in workerd", `processor time of one message, ${count} of them in one scheduled() invocation`);
  if (process.platform !== "linux") return report.note("Left out: only Linux tells the time of another process.");
  await using server = await startNatsServer();
  const nc = await wsconnect({ servers: server.url });
  await apply(nc, { streams: app.streams, consumers: app.bindings.map(({ consumer }) => consumer) });
  const jsm = await jetstreamManager(nc);
  await using running = new AsyncDisposableStack();
  const workers = [];
  for (const { name, file, bindings } of [
    { name: "Sortie, confirmed together", file: "sortie.ts", bindings: {} },
    { name: "bare fetch, ack, flush", file: "bare.ts", bindings: { CONFIRMED: false } },
    { name: "bare fetch, ackAck at once", file: "bare.ts", bindings: { CONFIRMED: true } },
  ]) {
    report.progress("starting workerd", 0);
    workers.push({ name, ...(await startWorker(file, { NATS_URL: server.url, ...bindings }, running)) });
  }
  const contenders = workers.map(({ name, pid, fire }) => ({
    name,
    async run() {
      let empty = 0; // too short for one of them to be told
      for (let n = 0; n < empties; n++) empty += (await cpuOf(pid, fire)) / empties;
      await publishMany(nc, "bench.workerd", count, (n) => JSON.stringify(orderAt(n)));
      const full = await cpuOf(pid, fire);
      const { messages } = (await jsm.streams.info("BENCH_WORKERD")).state;
      if (messages > 0) throw new Error(`${name} left ${messages} messages of ${count}`);
      return { perMessageUs: ((full - empty) / count) * 1_000, emptyMs: empty };
    },
  }));
  const results = await inRounds(contenders, quick ? 1 : 3, (name, done) => report.progress(name, done));
  await nc.close();
  show(report, results);
}

/** Bundles a Worker and starts it in a workerd of its own. */
async function startWorker(file: string, bindings: Record<string, string | boolean>, running: AsyncDisposableStack) {
  const entry = fileURLToPath(new URL(`workerd/${file}`, import.meta.url));
  const { outputFiles } = await build({
    entryPoints: [entry],
    bundle: true,
    format: "esm",
    platform: "browser",
    conditions: ["workerd", "worker", "browser"],
    write: false,
    logLevel: "warning",
  });
  const before = childrenNamed("workerd");
  const miniflare = new Miniflare({
    modules: true,
    script: outputFiles[0]?.text ?? "",
    compatibilityDate: "2026-07-30",
    bindings,
    host: "127.0.0.1",
    cf: false,
    unsafeTriggerHandlers: true,
    structuredWorkerdLogs: true,
    handleStructuredLogs() {}, // Sortie logs what its invocations did
  });
  running.defer(() => miniflare.dispose());
  const url = new URL("/cdn-cgi/handler/scheduled?format=json", await miniflare.ready);
  const [pid = -1] = childrenNamed("workerd").filter((one) => !before.includes(one));
  return { pid, fire: async () => (await (await fetch(url)).json()) as { outcome: string } };
}

async function cpuOf(pid: number, fire: () => Promise<{ outcome: string }>): Promise<number> {
  const before = cpuMs(pid);
  const { outcome } = await fire();
  if (outcome !== "ok") throw new Error(`An invocation in workerd ended with "${outcome}"`);
  return cpuMs(pid) - before;
}

function show(report: Report, results: ReadonlyMap<string, { perMessageUs: number; emptyMs: number }[]>): void {
  const costs = (name: string) => (results.get(name) ?? []).map(({ perMessageUs }) => perMessageUs);
  const names = [...results.keys()];
  const us = (value: number) => `${value.toFixed(1)} µs`;
  report.picture(
    "processor time of one message",
    names.map((label) => {
      const value = median(costs(label));
      return { label, value, text: us(value), ours: label.startsWith("Sortie") };
    }),
  );
  const base = "bare fetch, ack, flush";
  report.table(
    ["batch 100", "CPU of one message", "× bare fetch", "an empty invocation"],
    names.map((name) => {
      const empty = median((results.get(name) ?? []).map(({ emptyMs }) => emptyMs));
      return [
        name,
        us(median(costs(name))),
        `${ratio(costs(name), costs(base)).toFixed(2)}×`,
        `${empty.toFixed(1)} ms`,
      ];
    }),
  );
  report.note(
    "The whole process, in steps of 10 ms. Sortie decodes each payload and checks it; the bare loops do not.",
  );
  report.note("An empty bare invocation does not pull: it has looked at the consumer and found nothing there.");
}
