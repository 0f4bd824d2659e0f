"""What vagrant/Vagrantfile asks of Vagrant, by both providers: the variables it begins with change what they say."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[3] / "vagrant/Vagrantfile"
# In Vagrant's place: takes every setting and every block, and tells them as [where, values].
TELLING = """
require "json"
TOLD = []
class Told < BasicObject
  def initialize(path)
    @path, @set = path, {}
  end

  def method_missing(name, *values, **more, &block)
    return @set[name] if values.empty? && more.empty? && @set.key?(name)
    at = [@path, name.to_s.delete_suffix("=")].compact.join(".")
    ::TOLD << [at, values + [more]] unless values.empty? && more.empty?
    @set[name.to_s.delete_suffix("=").to_sym] = values.first if name.end_with?("=")
    inner = ::Told.new([at, *values.grep(::Symbol), *(name == :define ? values : [])].join("."))
    block.call(inner) if block && name != :ruby
    inner
  end
end
module Vagrant
  def self.configure(version) = yield(Told.new(nil))
end
load ARGV[0]
puts TOLD.to_json
"""


def told(**variables: str) -> dict[str, list]:
    """Where → the values of each call there, in order."""
    if shutil.which("ruby") is None:
        pytest.skip("needs ruby, which comes with vagrant: apt-get install vagrant")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PELAMIS_")}
    done = subprocess.run(["ruby", "-e", TELLING, FILE], env=clean | variables, stdout=subprocess.PIPE, check=True)
    found: dict[str, list] = {}
    for where, values in json.loads(done.stdout):
        found.setdefault(where, []).append([value for value in values if value != {}])
    return found


@pytest.mark.parametrize(("variables", "agents", "memory", "cpus", "box", "network", "driver"), [
    ({}, 2, 1536, 2, "debian/bookworm64", "192.168.56", "kvm"),
    ({"PELAMIS_AGENTS": "4", "PELAMIS_MEMORY": "4096", "PELAMIS_CPUS": "3", "PELAMIS_BOX": "bento/ubuntu-24.04",
      "PELAMIS_NETWORK": "10.9.8", "PELAMIS_DRIVER": "qemu"}, 4, 4096, 3, "bento/ubuntu-24.04", "10.9.8", "qemu")])
def test_number_memory_and_box_are_variables(variables, agents, memory, cpus, box, network, driver):
    found = told(**variables)
    names = ["server", *(f"agent{number}" for number in range(1, agents + 1))]
    assert found["vm.define"] == [[name] for name in names] and found["vm.box"] == [[box]]
    for provider in ("libvirt", "virtualbox"):
        asked = {name: found[f"vm.provider.{provider}.{name}"] for name in ("memory", "cpus")}
        assert asked == {"memory": [[memory]], "cpus": [[cpus]]}, provider
    assert found["vm.provider.libvirt.driver"] == [[driver]]
    for number, name in enumerate(names):
        assert found[f"vm.define.{name}.vm.network"] == [["private_network", {"ip": f"{network}.{10 + number}"}]]
        assert found[f"vm.define.{name}.vm.hostname"] == [[name]]
        scripts = [more for _, more in found[f"vm.define.{name}.vm.provision"]]
        assert [FILE.parent.joinpath(script["path"]).exists() for script in scripts] == [True]


def test_a_bundle_takes_the_place_of_the_folder():
    assert told(PELAMIS_BUNDLE="/tmp/b.tar")["vm.provision"] == [
        ["file", {"source": "/tmp/b.tar", "destination": "/tmp/pelamis-bundle.tar"}]]
    assert ["..", "/pelamis"] in [values[:2] for values in told()["vm.synced_folder"]]
