import { expect, it } from "vitest";
import * as z from "zod";
import { createApp, createClient, defineConsumer, defineStream } from "../src/index.ts";
import { startSystem } from "./support/system.ts";

const Trial = z.object({ user: z.string() });
const trials = defineStream("TRIALS", {
  subjects: { "trials.begun": Trial, "trials.paid": Trial, "trials.ends": Trial },
  captures: ["dead.>"],
});
const options = { deadLetter: "dead.trials" };
const begun = defineConsumer(trials, "begun", { filter: "trials.begun", ...options });
const paid = defineConsumer(trials, "paid", { filter: "trials.paid", ...options });

it("a client publishes and schedules, and a handler cancels what another one has scheduled", async () => {
  const told: string[] = [];
  const app = createApp({ streams: [trials] })
    .on(begun, async ({ data }, { schedule }) => {
      await schedule("trials.ends", data, { in: "14d", id: `trial of ${data.user}` });
    })
    .on(paid, async ({ data }, { cancel }) => {
      told.push(await cancel(`trial of ${data.user}`));
    });
  await using system = await startSystem(app);
  using client = await createClient(app, { url: system.server.url });
  expect(await client.publish("trials.begun", { user: "ann" }, { id: "ann" })).toMatchObject({ duplicate: false });
  expect(await client.publish("trials.begun", { user: "ann" }, { id: "ann" })).toMatchObject({ duplicate: true });
  await system.invoke();
  expect(await client.schedules.get("trial of ann")).toMatchObject({ state: "waiting", data: { user: "ann" } });
  await client.publish("trials.paid", { user: "ann" });
  await client.publish("trials.paid", { user: "bob" });
  await system.invoke();
  expect(told.toSorted()).toEqual(["cancelled", "unknown"]);
  expect(await client.schedules.get("trial of ann")).toMatchObject({ state: "cancelled" });
  const { id } = await client.schedule("trials.ends", { user: "bob" }, { in: "1h" });
  expect(await client.schedules.cancel(id)).toBe("cancelled");
  await expect(client.publish("trials.begun", { user: 1 as unknown as string })).rejects.toThrow(/user/);
  client.close();
  await expect(client.publish("trials.begun", { user: "eve" })).rejects.toMatchObject({ code: "connection-lost" });
});

it("a client that finds no server says so", async () => {
  const creating = createClient({ streams: [trials] }, { url: "ws://127.0.0.1:1" });
  await expect(creating).rejects.toMatchObject({ code: "connection-failed" });
});
