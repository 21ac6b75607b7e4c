import { contract } from "./contract.ts";

contract("newest");
