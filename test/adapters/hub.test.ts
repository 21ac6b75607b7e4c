import { expect, it } from "vitest";
import { createHub, viaHub } from "../../src/adapters/hub.ts";

it("refuses what makes no sense at the deploy, as it was given", () => {
  expect(() => createHub({ bytes: "32MiB" as never })).toThrow('bytes: expected a number from 1 on, got "32MiB"');
  expect(() => createHub({ outstanding: "5" as never })).toThrow('outstanding: expected a number from 1 on, got "5"');
  expect(() => createHub({ outstanding: NaN })).toThrow("got NaN");
  const [namespace, connections] = [() => ({}) as never, "4" as never];
  expect(() => viaHub(namespace, { connections })).toThrow('connections: expected a whole number from 1 on, got "4"');
});
