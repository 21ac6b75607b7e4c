import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { wsconnect } from "@nats-io/nats-core";
import { apply } from "../src/provision/apply.ts";
import { startNatsServer } from "../src/testing/nats-server.ts";
import { app } from "./memory/app.ts";
import type { Peak } from "./memory/child.ts";
import type { Bench } from "./report.ts";

const count = 200;
const payload = JSON.stringify({ image: "x".repeat(999_000) });
const most = 64 * 1_024 * 1_024;

/** Each has a process of its own. */
const contenders = [
  { name: "Sortie, as it comes", how: "sortie" },
  { name: `bare fetch({ max_messages: ${count} })`, how: "bare" },
  { name: "bare fetch({ max_bytes: 16 MiB })", how: "bare bytes" },
] as const;

/** How much memory an invocation takes where large messages wait. */
export async function memory({ report }: Bench): Promise<void> {
  report.section("Memory", `${count} messages of a megabyte are waiting, and a handler takes 10 ms`);
  await using server = await startNatsServer({ config: "max_pending: 1GB, write_deadline: 60s" });
  const nc = await wsconnect({ servers: server.url });
  const [js, jsm] = [jetstream(nc), await jetstreamManager(nc)];
  const rows: { name: string; free: Peak; collecting: Peak }[] = [];
  for (const [at, { name, how }] of contenders.entries()) {
    const run = async (collecting: boolean, done: number): Promise<Peak> => {
      report.progress(name, (at + done) / contenders.length);
      await apply(nc, { streams: app.streams, consumers: app.bindings.map(({ consumer }) => consumer) });
      for (let n = 0; n < count; n++) await js.publish("bench.memory", payload);
      const peak = await peakOf(server.url, how, collecting);
      await jsm.streams.delete("BENCH_MEMORY");
      return peak;
    };
    rows.push({ name, free: await run(false, 0), collecting: await run(true, 0.5) });
  }
  await nc.close();
  const mib = (bytes: number) => `${(bytes / 1_024 / 1_024).toFixed(0)} MiB`;
  report.picture(
    "what is held at the peak, above the start",
    rows.map(({ name, collecting: { held } }) => {
      return { label: name, value: held, text: mib(held), ours: name.startsWith("Sortie") };
    }),
  );
  report.table(
    ["peak above the start", "held", "resident", "held or not collected yet", "handled"],
    rows.map(({ name, free, collecting }) => [
      name,
      mib(collecting.held),
      mib(free.resident),
      mib(free.held),
      `${free.handled}`,
    ]),
  );
  report.note(
    "Held: on the heap and in array buffers while a collection runs every few milliseconds. Left alone, Node",
  );
  report.note("lets tens of megabytes of array buffers that nobody holds any more gather before it collects them.");
  report.note(
    "The server here lets a gigabyte be on its way to a client: with its own 64 MB it cuts the bare fetch off.",
  );
  const [ours] = rows;
  for (const [what, bytes] of [
    ["Held", ours?.collecting.held ?? Number.NaN],
    ["Resident", ours?.free.resident ?? Number.NaN],
  ] as const)
    report.target(`${what}, below 64 MiB for ${count} messages of a megabyte`, mib(bytes), bytes < most);
}

async function peakOf(url: string, how: string, collecting: boolean): Promise<Peak> {
  const child = fileURLToPath(new URL("memory/child.ts", import.meta.url));
  const args = ["--expose-gc", child, url, how, `${count}`, ...(collecting ? ["collecting"] : [])];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  return JSON.parse(stdout) as Peak;
}
