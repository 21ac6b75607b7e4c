import { describe, expect, it, vi } from "vitest";
import { collect } from "../../src/cli/definitions.ts";
import { planPermissions } from "../../src/provision/permissions.ts";
import { startPermitted } from "../support/permitted.ts";
import { rich, richOf, sample, sampleOf } from "../support/permitted-apps.ts";
import { fly } from "../support/permitted-flight.ts";

vi.spyOn(console, "log").mockReturnValue();
vi.spyOn(console, "error").mockReturnValue();

const atOnce = 6;

/** Each of them takes seconds, of which most are spent waiting. */
describe.skipIf(process.env.CHAOS !== "full")("permissions", () => {
  const systems = [
    ["the sample system", "newest", { sample }, sampleOf],
    ["the sample system", "2.9", { sample }, sampleOf],
    ["an app with all that there is", "newest", { rich }, richOf],
    ["an app with all that there is", "2.10", { rich }, richOf],
    ["an app with all that there is", "2.9", { rich }, richOf],
  ] as const;

  it.for(systems)("of %s, on %s, are all made use of", async ([, version, exports, samples]) => {
    await using permitted = await startPermitted(collect("app", exports), { version });
    const wrong = await fly(permitted, samples, { thorough: true });
    const result = { wrong, refused: await permitted.refused(), unused: permitted.unused() };
    expect(result).toEqual({ wrong: [], refused: [], unused: [] });
  });

  // minutes each: of older servers it is enough that all are made use of
  const newest = systems.filter(([, version]) => version === "newest");

  it.for(newest)("of %s, on %s, are the least: without one it fails", { timeout: 1_800_000 }, async (system) => {
    const [, version, exports, samples] = system;
    const definitions = collect("app", exports);
    const all = planPermissions(definitions).flatMap(({ role, publish, subscribe }) =>
      [...publish, ...subscribe].map(({ subject }) => ({ role, subject })),
    );
    const dispensable: string[] = [];

    async function tryNext(): Promise<void> {
      for (let without = all.shift(); without; without = all.shift()) {
        await using permitted = await startPermitted(definitions, { version, without });
        const thorough = without.role === "release" && without.subject.startsWith("$JS.API.STREAM.MSG.GET.");
        const wrong = await fly(permitted, samples, { thorough }).catch((error: unknown) => [String(error)]);
        if (wrong.length === 0) dispensable.push(`${without.role} ${without.subject}`);
      }
    }
    await Promise.all(Array.from({ length: atOnce }, tryNext));
    expect(dispensable).toEqual([]);
  });
});
