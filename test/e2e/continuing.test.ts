import { expect, it } from "vitest";
import { startWorker } from "../../scripts/worker.ts";
import type { InvocationReport } from "../../src/index.ts";
import { bundleWorker } from "../support/bundle.ts";
import { monitoring } from "../support/monitoring.ts";
import { startSystem } from "../support/system.ts";
import { app } from "./workers/app.ts";

it("a Worker goes on by its queue with what one cron trigger left, until nothing is", async () => {
  const monitor = await monitoring();
  await using system = await startSystem(app, monitor);
  const reports: (InvocationReport & { event: string })[] = [];
  await using worker = await startWorker({
    script: await bundleWorker("continuing.ts"),
    bindings: { NATS_URL: system.server.url },
    queues: { NEXT: "next" },
    onLog: (line) => reports.push(JSON.parse(line)),
  });
  await Promise.all(Array.from({ length: 600 }, (_, n) => system.publish("jobs.do", { n, ms: 100 })));
  expect(await worker.fire("* * * * *")).toMatchObject({ outcome: "ok" });
  let most = 0;
  for (let left = 1; left > 0; left = (await system.jsm.streams.info("JOBS")).state.messages)
    most = Math.max(most, (await monitor.connections()).length);
  expect(most).toBeLessThanOrEqual(4); // two places, and two for triggers
  const invocations = () => reports.filter(({ event }) => event === "invocation");
  await expect.poll(() => invocations().at(-1)?.consumers[0]).toMatchObject({ ended: "drained", more: false });
  expect(invocations().length).toBeGreaterThanOrEqual(3);
  expect(invocations()[0]).toMatchObject({ consumers: [{ more: true }, { more: false }], continued: { asked: 2 } });
  await expect.poll(() => monitor.connections()).toEqual([]);
});
