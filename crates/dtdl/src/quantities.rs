//! Semantic types and their units: built into DTDL v2, the extension `quantitativeTypes;1` of v3.

/// Semantic types with the kind of their units.
const TYPES: &[(&str, &str)] = &[
    ("Acceleration", "AccelerationUnit"),
    ("Angle", "AngleUnit"),
    ("AngularAcceleration", "AngularAccelerationUnit"),
    ("AngularVelocity", "AngularVelocityUnit"),
    ("Area", "AreaUnit"),
    ("Capacitance", "CapacitanceUnit"),
    ("Current", "CurrentUnit"),
    ("DataRate", "DataRateUnit"),
    ("DataSize", "DataSizeUnit"),
    ("Density", "DensityUnit"),
    ("Distance", "LengthUnit"),
    ("ElectricCharge", "ChargeUnit"),
    ("Energy", "EnergyUnit"),
    ("Force", "ForceUnit"),
    ("Frequency", "FrequencyUnit"),
    ("Humidity", "DensityUnit"),
    ("Illuminance", "IlluminanceUnit"),
    ("Inductance", "InductanceUnit"),
    ("Latitude", "AngleUnit"),
    ("Length", "LengthUnit"),
    ("Longitude", "AngleUnit"),
    ("Luminance", "LuminanceUnit"),
    ("Luminosity", "PowerUnit"),
    ("LuminousFlux", "LuminousFluxUnit"),
    ("LuminousIntensity", "LuminousIntensityUnit"),
    ("MagneticFlux", "MagneticFluxUnit"),
    ("MagneticInduction", "MagneticInductionUnit"),
    ("Mass", "MassUnit"),
    ("MassFlowRate", "MassFlowRateUnit"),
    ("Power", "PowerUnit"),
    ("Pressure", "PressureUnit"),
    ("RelativeHumidity", "Unitless"),
    ("Resistance", "ResistanceUnit"),
    ("SoundPressure", "SoundPressureUnit"),
    ("Temperature", "TemperatureUnit"),
    ("Thrust", "ForceUnit"),
    ("TimeSpan", "TimeUnit"),
    ("Torque", "TorqueUnit"),
    ("Velocity", "VelocityUnit"),
    ("Voltage", "VoltageUnit"),
    ("Volume", "VolumeUnit"),
    ("VolumeFlowRate", "VolumeFlowRateUnit"),
];

/// Units by kind, names parted by spaces.
const UNITS: &[(&str, &str)] = &[
    (
        "AccelerationUnit",
        "metrePerSecondSquared centimetrePerSecondSquared gForce",
    ),
    ("AngleUnit", "radian degreeOfArc minuteOfArc secondOfArc turn"),
    ("AngularAccelerationUnit", "radianPerSecondSquared"),
    (
        "AngularVelocityUnit",
        "radianPerSecond degreePerSecond revolutionPerSecond revolutionPerMinute",
    ),
    (
        "AreaUnit",
        "squareMetre squareCentimetre squareMillimetre squareKilometre hectare squareFoot squareInch acre",
    ),
    (
        "CapacitanceUnit",
        "farad millifarad microfarad nanofarad picofarad",
    ),
    ("ChargeUnit", "coulomb"),
    ("CurrentUnit", "ampere microampere milliampere"),
    (
        "DataRateUnit",
        "bitPerSecond kibibitPerSecond mebibitPerSecond gibibitPerSecond tebibitPerSecond exbibitPerSecond \
         zebibitPerSecond yobibitPerSecond bytePerSecond kibibytePerSecond mebibytePerSecond gibibytePerSecond \
         tebibytePerSecond exbibytePerSecond zebibytePerSecond yobibytePerSecond",
    ),
    (
        "DataSizeUnit",
        "bit kibibit mebibit gibibit tebibit exbibit zebibit yobibit byte kibibyte mebibyte gibibyte tebibyte exbibyte \
         zebibyte yobibyte",
    ),
    ("DensityUnit", "kilogramPerCubicMetre gramPerCubicMetre"),
    (
        "EnergyUnit",
        "joule kilojoule megajoule gigajoule electronvolt megaelectronvolt kilowattHour",
    ),
    ("ForceUnit", "newton pound ounce ton"),
    ("FrequencyUnit", "hertz kilohertz megahertz gigahertz"),
    ("IlluminanceUnit", "lux footcandle"),
    ("InductanceUnit", "henry millihenry microhenry"),
    (
        "LengthUnit",
        "metre centimetre millimetre micrometre nanometre kilometre foot inch mile nauticalMile astronomicalUnit",
    ),
    ("LuminanceUnit", "candelaPerSquareMetre"),
    ("LuminousFluxUnit", "lumen"),
    ("LuminousIntensityUnit", "candela"),
    ("MagneticFluxUnit", "weber maxwell"),
    ("MagneticInductionUnit", "tesla"),
    ("MassUnit", "kilogram gram milligram microgram tonne slug"),
    (
        "MassFlowRateUnit",
        "gramPerSecond kilogramPerSecond gramPerHour kilogramPerHour",
    ),
    (
        "PowerUnit",
        "watt microwatt milliwatt kilowatt megawatt gigawatt horsepower kilowattHourPerYear",
    ),
    (
        "PressureUnit",
        "pascal kilopascal bar millibar millimetresOfMercury poundPerSquareInch inchesOfMercury inchesOfWater",
    ),
    ("ResistanceUnit", "ohm milliohm kiloohm megaohm"),
    ("SoundPressureUnit", "decibel bel"),
    ("TemperatureUnit", "kelvin degreeCelsius degreeFahrenheit"),
    (
        "TimeUnit",
        "second millisecond microsecond nanosecond minute hour day year",
    ),
    ("TorqueUnit", "newtonMetre"),
    ("Unitless", "unity percent"),
    (
        "VelocityUnit",
        "metrePerSecond centimetrePerSecond kilometrePerSecond metrePerHour kilometrePerHour milePerHour milePerSecond knot",
    ),
    ("VoltageUnit", "volt millivolt microvolt kilovolt megavolt"),
    (
        "VolumeUnit",
        "cubicMetre cubicCentimetre litre millilitre cubicFoot cubicInch fluidOunce gallon",
    ),
    (
        "VolumeFlowRateUnit",
        "litrePerSecond millilitrePerSecond litrePerHour millilitrePerHour",
    ),
];

/// The units of a semantic type; `None` if there is no such type.
#[must_use]
pub fn units_of(semantic_type: &str) -> Option<&'static str> {
    let (_, kind) = TYPES.iter().find(|(name, _)| *name == semantic_type)?;
    UNITS
        .iter()
        .find(|(name, _)| name == kind)
        .map(|(_, units)| *units)
}

/// Whether a unit is one of those that [`units_of`] gave.
#[must_use]
pub fn is_unit_of(units: &str, unit: &str) -> bool {
    units.split(' ').any(|known| known == unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_units() {
        for (name, _) in TYPES {
            assert!(units_of(name).is_some_and(|units| !units.is_empty()), "{name}");
        }
        for (kind, _) in UNITS {
            assert!(TYPES.iter().any(|(_, known)| known == kind), "{kind}");
        }
    }

    #[test]
    fn units_belong_to_types() {
        let units = units_of("Temperature").unwrap();
        assert!(
            is_unit_of(units, "degreeCelsius") && !is_unit_of(units, "degree") && !is_unit_of(units, "metre")
        );
        assert_eq!(units_of("Warmth"), None);
    }
}
