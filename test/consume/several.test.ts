import { afterEach, describe, expect, it } from "vitest";
import * as z from "zod";
import { createApp, defineConsumer, defineStream } from "../../src/index.ts";
import { type System, startSystem } from "../support/system.ts";

const Job = z.object({ n: z.number() });
const stream = defineStream("WORK", { subjects: { "work.one": Job, "work.two": Job }, retention: "workqueue" });
const dead = defineStream("DEAD", { captures: ["dead.>"] });

let system: System;
afterEach(() => system[Symbol.asyncDispose]());

interface Side {
  readonly count: number;
  readonly takesMs: number;
  readonly options?: { readonly priority: number };
}

/** Two consumers in one invocation, and whose handlers ended in which order. */
async function sideBySide(one: Side, two: Side, concurrency?: number) {
  const started: string[] = [];
  const ended: string[] = [];
  let running = 0;
  let most = 0;
  const sides = { one, two };
  const consumerOf = (name: "one" | "two") =>
    defineConsumer(stream, name, { ...sides[name].options, filter: `work.${name}`, deadLetter: "dead.work" });
  const handlerOf = (name: "one" | "two") => async () => {
    started.push(name);
    running += 1;
    most = Math.max(most, running);
    await new Promise((resolve) => setTimeout(resolve, sides[name].takesMs));
    running -= 1;
    ended.push(name);
  };
  const app = createApp({ streams: [stream, dead] })
    .on(consumerOf("one"), handlerOf("one"))
    .on(consumerOf("two"), handlerOf("two"));
  system = await startSystem(app);
  for (const name of ["one", "two"] as const)
    for (let n = 0; n < sides[name].count; n++) await system.publish(`work.${name}`, { n });
  const report = await system.invoke(concurrency === undefined ? {} : { concurrency });
  return { started, ended, most, report };
}

describe("several consumers in one invocation", () => {
  it("do not wait for a slow one", async () => {
    const { ended, report } = await sideBySide({ count: 32, takesMs: 300 }, { count: 100, takesMs: 2 });
    expect(report.consumers).toMatchObject([{ acked: 32 }, { acked: 100 }]);
    expect(ended.slice(0, 100).filter((name) => name === "two").length).toBeGreaterThan(80);
  });

  it("share the places that the invocation has fairly", async () => {
    const { started, most } = await sideBySide({ count: 40, takesMs: 20 }, { count: 40, takesMs: 20 }, 4);
    expect(most).toBe(4);
    const half = started.slice(0, 40).filter((name) => name === "one").length;
    expect(half).toBeGreaterThanOrEqual(16);
    expect(half).toBeLessThanOrEqual(24);
  });

  it("share them fairly where one is slow, so that it has no more of them for it", async () => {
    const { ended, most } = await sideBySide({ count: 16, takesMs: 200 }, { count: 100, takesMs: 4 }, 4);
    expect(most).toBe(4);
    const last = ended.lastIndexOf("two");
    expect(ended.slice(0, last).filter((name) => name === "one").length).toBeLessThanOrEqual(8);
  });

  it("start what has the higher priority first", async () => {
    const urgent = { count: 40, takesMs: 5, options: { priority: 1 } };
    const { started, report } = await sideBySide({ count: 40, takesMs: 5 }, urgent, 2);
    const last = started.lastIndexOf("two");
    expect(started.slice(0, last).filter((name) => name === "one").length).toBeLessThanOrEqual(4);
    expect(report.consumers).toMatchObject([
      { acked: 40, ended: "drained" },
      { acked: 40, ended: "drained" },
    ]);
  });
});
