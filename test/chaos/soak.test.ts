import type { ChildProcess } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, it } from "vitest";
import { startNatsServer } from "../../src/testing/nats-server.ts";
import { startProxy } from "../support/peers.ts";
import {
  ended,
  expectInvariants,
  type Fault,
  type Observed,
  observe,
  outstanding,
  prepare,
  startVictim,
} from "./harness.ts";
import { ackWaitMs, soak } from "./scenario.ts";

// npm run chaos: 200,000 messages. Within npm test: a few thousand.
const full = process.env.CHAOS === "full";
const count = full ? 200_000 : 3_000;
const hosts = 3;
const everyMs = full ? 1_500 : 500;

const folder = mkdtempSync(join(tmpdir(), "sortie-soak-"));
let observed: Observed;

beforeAll(async () => {
  observed = await observe(await startNatsServer());
});
afterAll(async () => {
  await observed.tcp.close();
  await observed.server.stop();
  rmSync(folder, { recursive: true });
});

describe(`${count} messages, with functions killed, frozen and cut off at random`, { retry: 0 }, () => {
  it("are all handled, or dead-lettered for their reason", { timeout: 1_800_000 }, async () => {
    const numbers = Array.from({ length: count }, (_, n) => n);
    const prepared = await prepare(observed, "soak", folder, { numbers, ...soak });
    const { server, run, log } = prepared;
    await using proxy = await startProxy(server.url);
    const start = () => startVictim(prepared, { url: proxy.url, run, log, budgetMs: 3_000, soak: true });
    const victims: ChildProcess[] = Array.from({ length: hosts }, start);
    const strikes: Fault[] = [];

    async function strikeOne(): Promise<void> {
      const fault = (["kill", "cut", "kill", "freeze", "kill", "restart"] as const)[strikes.length % 6] as Fault;
      const index = Math.floor(Math.random() * hosts);
      const victim = victims[index] as ChildProcess;
      strikes.push(fault);
      if (fault === "kill") {
        const end = ended(victim);
        victim.kill("SIGKILL");
        await end;
        victims[index] = start();
      } else if (fault === "freeze") {
        victim.kill("SIGSTOP");
        await sleep(ackWaitMs * 1.2);
        victim.kill("SIGCONT");
      } else if (fault === "cut") {
        const sockets = [...proxy.sockets];
        sockets[Math.floor(Math.random() * sockets.length)]?.destroy();
      } else {
        await server.kill("SIGKILL");
        await server.start();
        observed.tcp = (await observe(server)).tcp;
      }
    }

    try {
      for (;;) {
        await sleep(everyMs * (0.5 + Math.random()));
        const left = await outstanding(prepared);
        if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${left} messages left`);
        if (left === 0 && strikes.length >= 6) break;
        if (left > count / 10 || strikes.length < 6) await strikeOne(); // the end is for coming to rest
      }
    } finally {
      for (const victim of victims) victim.kill("SIGKILL");
    }
    console.log(`${count} messages, ${strikes.length} strikes`);
    await expectInvariants(prepared, ["function-died"]); // the last start of one that fails for good may be struck
  });
});
