import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import type { Place } from "../../src/consume/places.ts";
import { bundleProgram } from "../support/bundle.ts";
import { monitoring } from "../support/monitoring.ts";
import { startSystem } from "../support/system.ts";
import { ceiling, type Going, goingOn, outside, waits } from "./going-on.ts";

// npm run chaos: 60,000 messages. Within npm test: some thousands.
const full = process.env.CHAOS === "full";
const count = full ? 60_000 : 6_000;
const budgetMs = 3_000;

it(`a backlog of ${count} is fanned out over processes, some of them killed, and never over the ceiling on connections`, {
  retry: 0,
  timeout: full ? 600_000 : 90_000,
}, async () => {
  const folder = mkdtempSync(join(tmpdir(), "sortie-fan-out-"));
  const log = join(folder, "log");
  writeFileSync(log, "");
  const program = await bundleProgram("continuer.ts", folder);
  const app = goingOn(log);
  const monitor = await monitoring();
  await using system = await startSystem(app, monitor);
  const publish = (n: number) => system.publish("jobs.do", { n });
  for (let from = 0; from < count; from += 500)
    await Promise.all(Array.from({ length: 500 }, (_, n) => publish(from + n)));

  // the platform: one process for each place that it is asked for
  const running = new Set<ChildProcess>();
  const ticks = new Set<ChildProcess>();
  const deaths = waits.toSorted(() => Math.random() - 0.5).slice(0, full ? waits.length : 2);
  let [started, kills] = [0, 0];
  function start(place?: Place): ChildProcess {
    const dieAt = place && started % 5 === 4 ? deaths.pop() : undefined; // its places are lost for 13 seconds
    const going: Going = { url: system.server.url, log, budgetMs, place, dieAt };
    const child = fork(program, [JSON.stringify(going)]);
    started += 1;
    running.add(child);
    child.on("message", (places) => (places as Place[]).forEach(start));
    child.on("exit", (_code, signal) => {
      running.delete(child);
      if (signal) kills += 1;
    });
    return child;
  }
  function tick(): void {
    if (ticks.size === outside) return;
    const child = start();
    ticks.add(child);
    child.on("exit", () => ticks.delete(child));
  }

  let [watching, most, samples] = [true, 0, 0];
  const watch = async () => {
    while (watching) {
      most = Math.max(most, (await monitor.connections()).length);
      samples += 1;
      await sleep(10);
    }
  };
  const watched = watch();
  const left = async () => {
    const { num_pending, num_ack_pending } = await system.jsm.consumers.info("JOBS", "worker");
    return num_pending + num_ack_pending;
  };
  try {
    for (let rounds = 0; (await left()) > 0; rounds++) {
      if (rounds % 4 === 0) tick();
      await sleep(200 + 200 * Math.random());
      const victims = [...running];
      if (rounds % 12 !== 11 || victims.length < 3) continue;
      victims[Math.floor(Math.random() * victims.length)]?.kill("SIGKILL");
    }
    // nobody goes on where nothing is left: the last ones end, and start no others
    await expect.poll(() => running.size, { timeout: 3 * budgetMs }).toBe(0);
    await expect.poll(() => monitor.connections()).toEqual([]);
  } finally {
    watching = false;
    await watched;
    const ends = [...running].map((child) => once(child, "exit"));
    for (const child of running) child.kill("SIGKILL");
    await Promise.all(ends);
  }
  console.log(`${started} invocations, ${kills} killed, ${most} connections at most in ${samples} samples`);
  expect(most).toBeLessThanOrEqual(ceiling);
  expect(most).toBeGreaterThan(outside); // it did fan out
  expect(kills).toBeGreaterThan(0);
  const handled = new Set(
    readFileSync(log, "utf8")
      .trim()
      .split("\n")
      .map((line) => Number(line.split(" ")[0])),
  );
  expect(handled.size).toBe(count);
  expect((await system.jsm.streams.info("DEAD")).state.messages).toBe(0);
  rmSync(folder, { recursive: true });
});
