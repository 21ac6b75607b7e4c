import { afterEach, describe, expect, it } from "vitest";
import { crashPoints, within } from "../../src/nats/within.ts";

afterEach(() => delete crashPoints.reached);

describe("a bounded wait", () => {
  it("ends in time though what it waits for does not, and says what that was", async () => {
    const hanging = new Promise(() => {});
    await expect(within(20, "closing", hanging)).rejects.toMatchObject({
      code: "timed-out",
      message: "closing took longer than the 20 ms it had",
    });
  });

  it("is a point that a test is told of, before and after", async () => {
    const reached: string[] = [];
    crashPoints.reached = (point, phase) => reached.push(`${phase} ${point}`);
    expect(await within(1_000, "pulling", Promise.resolve(1))).toBe(1);
    expect(reached).toEqual(["before pulling", "after pulling"]);
  });
});
