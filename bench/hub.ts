import { once } from "node:events";
import { Agent, type IncomingMessage, request } from "node:http";
import { connect } from "node:net";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { wsconnect } from "@nats-io/nats-core";
import { build } from "esbuild";
import { Miniflare } from "miniflare";
import { apply } from "../src/provision/apply.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { type Monitoring, monitoring } from "../test/support/monitoring.ts";
import { startStretch } from "../test/support/stretch.ts";
import { app } from "./hub/app.ts";
import type { Bench, Report } from "./report.ts";
import { inRounds, median, quantile } from "./rounds.ts";

const ways = { "through a hub": "/hub", "through four hubs": "/hubs", "a connection each": "/direct" };
const distances = [0, 10]; // ms away each way

interface Figures {
  readonly p50: number;
  readonly p99: number;
  readonly allMs: number;
  /** At the same time, at most. */
  readonly open: number;
  readonly failed: number;
  /** Of one publish, towards NATS; 0 where nobody counts. */
  readonly flights: number;
}

/** What a hub saves: a handshake for each publish, and a connection for each. */
export async function hub({ quick, report }: Bench): Promise<void> {
  const count = quick ? 200 : 1_000;
  report.section("Hub", `${count} publishes over HTTP in workerd, all at once, and one after the other`);
  const monitor = await monitoring();
  await using server = await startNatsServer({ config: `${monitor.config}\nmax_connections: 4096` });
  const nc = await wsconnect({ servers: server.url });
  await apply(nc, { streams: app.streams, consumers: [] });
  await nc.close();
  for (const delayMs of distances) {
    await using running = new AsyncDisposableStack();
    const stretch = delayMs === 0 ? undefined : running.use(await startStretch(server.url, delayMs));
    const url = await startWorker((stretch ?? server).url, running);
    const flown = () => stretch?.flights ?? 0;
    const one = { url, monitor, flown };
    const contenders = (counted: (way: string) => Promise<Figures>) =>
      Object.entries(ways).map(([name, way]) => ({ name, run: () => counted(way) }));
    const [rounds, told] = [quick ? 1 : 3, (name: string, done: number) => report.progress(name, done)];
    const atOnce = await inRounds(
      contenders((way) => publishAll(one, way, count, count)),
      rounds,
      told,
    );
    const alone = await inRounds(
      contenders((way) => publishAll(one, way, count / 10, 1)),
      rounds,
      told,
    );
    show(report, delayMs, atOnce, alone);
  }
}

async function startWorker(nats: string, running: AsyncDisposableStack): Promise<URL> {
  const { outputFiles } = await build({
    entryPoints: [fileURLToPath(new URL("hub/worker.ts", import.meta.url))],
    bundle: true,
    format: "esm",
    platform: "browser",
    conditions: ["workerd", "worker", "browser"],
    external: ["cloudflare:workers"],
    write: false,
    logLevel: "warning",
  });
  const miniflare = new Miniflare({
    modules: true,
    script: outputFiles[0]?.text ?? "",
    compatibilityDate: "2026-07-30",
    bindings: { NATS_URL: nats, SORTIE_PUBLISH_TOKEN: "token-of-the-bench" },
    durableObjects: { HUB: { className: "Hub", useSQLite: true } },
    host: "127.0.0.1",
    cf: false,
  });
  running.defer(() => miniflare.dispose());
  return miniflare.ready;
}

interface Target {
  readonly url: URL;
  readonly monitor: Monitoring;
  flown(): number;
}

/** Publishes `count` messages, `together` at a time. */
async function publishAll(
  { url, monitor, flown }: Target,
  way: string,
  count: number,
  together: number,
): Promise<Figures> {
  for (const giveUpAt = Date.now() + 10_000; (await openOnes(monitor)) > 0 && Date.now() < giveUpAt; ) await sleep(50);
  const took: number[] = [];
  let [left, failed, open, isOver] = [count, 0, 0, false];
  const watching = (async () => {
    while (!isOver) open = Math.max(open, await openOnes(monitor).catch(() => 0)); // a busy server may not say
  })();
  const clients = await openClients(url, together);
  const [started, flownBefore] = [performance.now(), flown()];
  const publishing = clients.map(async (client) => {
    while (left-- > 0) {
      const began = performance.now();
      const status = await publishOver(client, new URL(`${way}/publish/bench.hub`, url)).catch(() => 0);
      if (status !== 202) failed += 1;
      took.push(performance.now() - began);
    }
  });
  await Promise.all(publishing);
  for (const client of clients) client.destroy();
  const allMs = performance.now() - started;
  const flights = (flown() - flownBefore) / count;
  isOver = true;
  await watching;
  return { p50: median(took), p99: quantile(took, 0.99), allMs, open, failed, flights };
}

/** So many connections to the Worker, opened a few at a time: a thousand at once would not all be accepted. */
async function openClients(url: URL, count: number): Promise<Agent[]> {
  const clients: Agent[] = [];
  while (clients.length < count) {
    const some = Array.from({ length: Math.min(20, count - clients.length) }, async () => {
      const socket = connect(Number(url.port), url.hostname);
      await once(socket, "connect");
      const client = new Agent({ keepAlive: true, maxSockets: 1 });
      client.createConnection = () => socket;
      return client;
    });
    clients.push(...(await Promise.all(some)));
  }
  return clients;
}

async function publishOver(agent: Agent, url: URL): Promise<number> {
  const headers = { Authorization: "Bearer token-of-the-bench", "Content-Type": "application/json" };
  const asked = request(url, { method: "POST", headers, agent });
  asked.end('{"n":1}');
  const [response] = (await once(asked, "response")) as [IncomingMessage];
  await text(response);
  return response.statusCode ?? 0;
}

async function openOnes(monitor: Monitoring): Promise<number> {
  const names = ["sortie", "sortie-hub"];
  const all = await Promise.all(names.map((name) => monitor.connections("open", name)));
  return all.flat().length;
}

function show(
  report: Report,
  delayMs: number,
  atOnce: ReadonlyMap<string, Figures[]>,
  alone: ReadonlyMap<string, Figures[]>,
): void {
  const of = (all: ReadonlyMap<string, Figures[]>, name: string, what: keyof Figures) =>
    median((all.get(name) ?? []).map((figures) => figures[what]));
  const ms = (value: number) => `${value.toFixed(1)} ms`;
  report.table(
    [
      `NATS ${2 * delayMs} ms away`,
      "at a time: p50",
      "p99",
      "all of it",
      "connections",
      "failed",
      "one by one: p50",
      "p99",
    ],
    Object.keys(ways).map((name) => [
      name,
      ms(of(atOnce, name, "p50")),
      ms(of(atOnce, name, "p99")),
      ms(of(atOnce, name, "allMs")),
      `${Math.max(...(atOnce.get(name) ?? []).map(({ open }) => open))}`,
      `${(atOnce.get(name) ?? []).reduce((sum, { failed }) => sum + failed, 0)}`,
      ms(of(alone, name, "p50")),
      ms(of(alone, name, "p99")),
      delayMs === 0 ? "" : of(alone, name, "flights").toFixed(1),
    ]),
  );
  const most = Math.max(...(atOnce.get("through a hub") ?? []).map(({ open }) => open));
  if (delayMs === 0) return;
  report.note("Each run begins without a connection: a hub's first publishes wait for its own.");
  const flights = of(alone, "through a hub", "flights");
  report.target("A hub keeps one connection, whatever is published", `${most}`, most === 1);
  report.target("A publish through a hub is one flight to NATS", `${flights.toFixed(1)}`, flights < 1.2);
}
