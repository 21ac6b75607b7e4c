import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { expect, it } from "vitest";
import { connect } from "../../src/nats/connection.ts";
import { apply } from "../../src/provision/apply.ts";
import { scheduled } from "../../src/schedule/schedule.ts";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { bundleProgram } from "../support/bundle.ts";
import { programOf } from "../support/servers.ts";
import { observe } from "./harness.ts";
import { tasks } from "./release-app.ts";
import type { Releasing } from "./release-member.ts";

// npm run chaos: 100,000 schedules. Within npm test: two thousand.
const full = process.env.CHAOS === "full";
const count = full ? 100_000 : 2_000;
const overMs = full ? 100_000 : 5_000;
const members = 4;

it(`${count} schedules are released once each, and never early, by functions that die at any wait`, {
  retry: 0,
  timeout: 600_000,
}, async () => {
  const folder = mkdtempSync(join(tmpdir(), "sortie-chaos-"));
  const memberFile = await bundleProgram("release-member.ts", folder);
  await using server = await startNatsServer({ binary: programOf("2.10") });
  const { tcp } = await observe(server);
  const jsm = await jetstreamManager(tcp);
  const connection = await connect({ url: server.url }, 5_000);
  await apply(connection, { streams: [tasks], consumers: [] });
  const from = Date.now() + 2_000 + count / 5;
  const dueAt = (n: number) => from + Math.floor((n * overMs) / count);
  const encoder = new TextEncoder();
  for (let begin = 0; begin < count; begin += 500) {
    const some = Array.from({ length: Math.min(500, count - begin) }, async (_, index) => {
      const n = begin + index;
      const outgoing = { stream: "TASKS", subject: "tasks.later", payload: encoder.encode(JSON.stringify({ n })) };
      const options = { id: `task ${n}`, at: new Date(dueAt(n)) };
      await scheduled(connection, outgoing, tasks, options, Date.now()).store(30_000);
    });
    await Promise.all(some);
  }
  await connection.close();

  const crowd = new Set<ChildProcess>();
  let [deaths, over] = [0, false];
  const joinIn = () => {
    const told: Releasing = {
      url: server.url,
      mortality: Date.now() < from + overMs ? 4 * (count / overMs) * 1_000 : 0,
    };
    const child = spawn(process.execPath, [memberFile, JSON.stringify(told)], { stdio: "ignore" });
    crowd.add(child);
    child.once("exit", () => {
      crowd.delete(child);
      if (over) return;
      deaths += 1;
      joinIn();
    });
  };
  for (let n = 0; n < members; n++) joinIn();
  const left = async () => count - (await jsm.streams.info("TASKS")).state.messages;
  const wait = { timeout: overMs + count / 5 + 60_000, interval: 250 };
  try {
    await expect.poll(left, wait).toBe(0);
  } finally {
    over = true;
    for (const child of crowd) {
      child.kill("SIGKILL");
      await once(child, "exit");
    }
  }

  const { name } = await jsm.consumers.add("TASKS", { name: "looks", mem_storage: true });
  const messages = await (await jetstream(tcp).consumers.get("TASKS", name)).fetch({
    max_messages: 2 * count,
    expires: 5_000,
  });
  const late = new Map<number, number>();
  for await (const message of messages) {
    const { n } = message.json<{ n: number }>();
    expect(late.has(n), `schedule ${n} for the second time`).toBe(false);
    late.set(n, message.info.timestampNanos / 1e6 - dueAt(n));
    if (late.size === count) break;
  }
  expect(late.size).toBe(count);
  const all = [...late.values()].toSorted((a, b) => a - b);
  expect(all[0]).toBeGreaterThanOrEqual(0);
  expect(deaths).toBeGreaterThan(0);
  expect((await jsm.streams.info("TASKS")).state.messages).toBe(count);
  const at = (part: number) => Math.round(all[Math.floor(part * (count - 1))] ?? 0);
  console.log(`${count} schedules, ${deaths} deaths: late by ${at(0.5)} ms (p50), ${at(0.99)} ms (p99), ${at(1)} ms`);
  await tcp.close();
  rmSync(folder, { recursive: true });
});
