import { jetstreamManager } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { schedulesStream } from "../../src/define/own.ts";
import { defineStream } from "../../src/define/stream.ts";
import { connect, disconnect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import type { Outgoing } from "../../src/publish/outgoing.ts";
import { publish } from "../../src/publish/publish.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { cpuMs } from "../cpu.ts";
import { Order, orderAt } from "../order.ts";
import { type Bench, type Report, thousands } from "../report.ts";
import { inRounds, median, ratio } from "../rounds.ts";

const together = 100;
const plain = "published, not scheduled";

const streams = {
  plain: defineStream("BENCH_PLAIN", { subjects: { "bench.plain.placed": Order }, schedules: false }),
  server: defineStream("BENCH_SERVER", { subjects: { "bench.server.placed": Order } }),
  function: defineStream("BENCH_FUNCTION", { subjects: { "bench.function.placed": Order }, schedules: "function" }),
};

interface Run {
  readonly perSecond: number;
  /** Processor time of one message, in microseconds. */
  readonly clientUs: number;
  readonly serverUs: number;
}

/** How fast messages are stored for later, beside publishing them. */
export async function rate({ quick, report }: Bench): Promise<void> {
  const count = quick ? 2_000 : 10_000;
  await using server = await startNatsServer();
  const nc = await wsconnect({ servers: server.url });
  await apply(nc, { streams: Object.values(streams), consumers: [] });
  const jsm = await jetstreamManager(nc, { checkAPI: false });
  const connection = await connect({ url: server.url }, 5_000);
  const encoder = new TextEncoder();
  const at = new Date(Date.now() + 86_400_000);
  let made = 0;

  /** Each has a message id, as what a handler publishes has. */
  function outgoing(n: number, engine: keyof typeof streams): Outgoing {
    const payload = encoder.encode(JSON.stringify(orderAt(n)));
    return { stream: streams[engine].name, subject: `bench.${engine}.placed`, payload, id: `message ${n}` };
  }

  function schedule(n: number, engine: "server" | "function", nameless: boolean): Promise<unknown> {
    const options = { id: `order ${n}`, at, nameless };
    return scheduled(connection, outgoing(n, engine), streams[engine], options, Date.now()).store(30_000);
  }

  const ways: Record<string, (n: number) => Promise<unknown>> = {
    [plain]: (n) => publish(connection, outgoing(n, "plain"), 30_000),
    "for the server": (n) => schedule(n, "server", true),
    "for the server, with an id": (n) => schedule(n, "server", false),
    "for a function": (n) => schedule(n, "function", true),
    "for a function, with an id": (n) => schedule(n, "function", false),
  };
  const contenders = Object.entries(ways).map(([name, store]) => ({
    name,
    async run(): Promise<Run> {
      const [began, client, theirs] = [performance.now(), process.cpuUsage(), cpuMs(server.pid)];
      for (let n = 0; n < count; n += together)
        await Promise.all(Array.from({ length: together }, () => store(made++)));
      const ms = performance.now() - began;
      const { user, system } = process.cpuUsage(client);
      const serverUs = ((cpuMs(server.pid) - theirs) * 1_000) / count;
      for (const each of [...Object.values(streams).map(({ name }) => name), schedulesStream])
        await jsm.streams.purge(each);
      return { perSecond: (count / ms) * 1_000, clientUs: (user + system) / count, serverUs };
    },
  }));
  const results = await inRounds(contenders, quick ? 2 : 7, (name, done) => report.progress(name, done / 10));
  disconnect(connection);
  await nc.close();
  show(report, results);
}

function show(report: Report, results: ReadonlyMap<string, Run[]>): void {
  const of = (name: string, what: keyof Run) => (results.get(name) ?? []).map((run) => run[what]);
  const times = (name: string) => ratio(of(name, "perSecond"), of(plain, "perSecond"));
  const us = (value: number) => `${value.toFixed(1)} µs`;
  const names = [...results.keys()];
  report.picture(
    "stored per second",
    names.map((label) => {
      const value = median(of(label, "perSecond"));
      return { label, value, text: `${thousands(value)}/s`, ours: label !== plain };
    }),
  );
  report.table(
    ["stored", "per second", "× published", "CPU of one, client", "server"],
    names.map((name) => [
      name,
      thousands(median(of(name, "perSecond"))),
      `${times(name).toFixed(2)}×`,
      us(median(of(name, "clientUs"))),
      us(median(of(name, "serverUs"))),
    ]),
  );
  report.note(
    `${together} at a time, each confirmed and with a message id; all are due in a day. With an id of the caller's`,
  );
  report.note(
    "a schedule is two messages: for the server its word that it has it, for a function the note of its minute.",
  );
  for (const name of ["for the server", "for a function"]) {
    const measured = times(name);
    report.target(
      `Scheduling ${name}, without an id, at least 0.8 × the rate of plain publishing`,
      `${measured.toFixed(2)} ×`,
      measured >= 0.8,
    );
  }
}
