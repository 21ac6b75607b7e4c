import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream, fixed } from "../../src/index.ts";
import { apply } from "../../src/provision/apply.ts";
import { release } from "../../src/schedule/release.ts";
import type { ClientName } from "../support/clients.ts";
import type { ServerVersion } from "../support/servers.ts";
import { appOf, dead, jobs, type Start, worker } from "./jobs.ts";

/** What `sortie apply` makes, and what a server is too old for. */
export function provisioning(start: Start, version: ServerVersion, client: ClientName): void {
  const app = appOf(worker({ maxAckPending: 100 }), () => {});

  it("apply changes nothing the second time", async ({ expect }) => {
    await using system = await start(app);
    const connection = await system.connect();
    const consumers = app.bindings.map(({ consumer }) => consumer);
    const again = await apply(connection, { streams: app.streams, consumers });
    await connection.close();
    expect(again.map(({ name, action, changes }) => [name, action, changes])).toEqual(
      [
        "JOBS",
        "DEAD",
        "SORTIE_ATTEMPTS",
        "SORTIE_SCHEDULES",
        "SORTIE_PARKED",
        "JOBS/worker",
        "SORTIE_PARKED/JOBS~worker",
      ].map((name) => [name, "none", []]),
    );
  });

  if (client === "wsconnect") {
    it("sortie apply creates the sample system, and changes nothing the second time", async ({ expect }) => {
      await using system = await start(createApp({ streams: [] }));
      const sortie = () => {
        const env = { ...process.env, NATS_URL: system.server.url };
        return promisify(execFile)(process.execPath, ["dist/cli/main.js", "apply", "functions/app.ts"], { env });
      };
      expect((await sortie()).stdout).toMatch(/^(created .*\n){10}$/);
      expect((await sortie()).stdout).toMatch(/^(unchanged .*\n){10}$/);
    });
  }

  const later = defineStream("LATER", { subjects: { "later.ask": z.string(), "later.do": z.string() } });
  const options = { deadLetter: "dead.later", retry: { attempts: 1, backoff: fixed(20) } };
  const asker = defineConsumer(later, "asker", { filter: "later.ask", ...options });
  const doer = defineConsumer(later, "doer", { filter: "later.do", ...options });

  async function startScheduling() {
    const done: { id: string; at: number }[] = [];
    let due = 0;
    const scheduling = createApp({ streams: [later, dead] })
      .on(asker, async (_, { schedule }) => {
        due = Date.now() + 400;
        await schedule("later.do", "x", { at: new Date(due), id: "once" });
      })
      .on(doer, ({ id, publishedAt }) => void done.push({ id, at: publishedAt.getTime() - due }));
    const system = await start(scheduling);
    await system.publish("later.ask", "go");
    await system.invoke();
    return { system, done };
  }

  it("a schedule is released once, and not before its time", async ({ expect }) => {
    const { system, done } = await startScheduling();
    await using _ = system;
    const connection = await system.connect();
    const report = await release(connection, [later], { deadline: Date.now() + 5_000, lingerMs: 1_000 });
    await expect.poll(async () => (await system.invoke()) && done.length).toBe(1);
    await system.settle();
    expect(done).toEqual([{ id: "once", at: expect.any(Number) }]);
    expect(done[0]?.at).toBeGreaterThanOrEqual(0);
    const { streams } = await release(connection, [later], { deadline: Date.now() + 5_000 });
    expect(streams).toEqual([{ stream: "LATER", ...(version === "newest" ? { onServer: 0 } : { released: 0 }) }]);
    if (version !== "newest") expect(report.streams).toMatchObject([{ stream: "LATER", released: 1 }]);
    await connection.close();
  });

  const both = defineConsumer(jobs, "both", { deadLetter: "dead.jobs" });
  const needing = createApp({ streams: [jobs, dead] }).on(both, () => {});
  if (version === "2.9") {
    it("more than one filter is refused with the version that it needs", async ({ expect }) => {
      await expect(start(needing)).rejects.toThrow(/2 filters, which takes nats-server 2\.10 or newer/);
    });
  } else {
    it("more than one filter lets through what any of them does", async ({ expect }) => {
      await using system = await start(needing);
      await system.publish("jobs.do", { n: 1 });
      await system.publish("jobs.done", { n: 1 });
      expect((await system.invoke()).consumers[0]).toMatchObject({ pulled: 2, acked: 2 });
    });
  }
}
