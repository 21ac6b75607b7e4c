import { afterAll, beforeAll } from "vitest";
import { startInLambda } from "./hosts.ts";
import { type LambdaPackage, packageFunctions } from "./lambda-package.ts";
import { sample } from "./sample.ts";

let deployed: LambdaPackage;
beforeAll(async () => {
  deployed = await packageFunctions({ NATS_URL: "wss://nats.test:443" });
});
afterAll(() => deployed?.[Symbol.asyncDispose]());

sample("Lambda", (settings) => startInLambda(deployed, settings));
